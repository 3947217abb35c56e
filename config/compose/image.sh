#!/bin/sh
# Lays out the root file system of the image: image.sh BINARY FOLDER
set -eu
binary="$1"
root="$2"
mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs" "$root/tmp"
cp "$binary" "$root/usr/local/bin/drawbridge"
strip "$root/usr/local/bin/drawbridge"
# The loader and the libraries, where the binary looks for them. Names are resolved by libc itself.
ldd "$binary" | grep -o '/[^ )]*' | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
echo 'drawbridge:x:65532:65532::/data:/' >"$root/etc/passwd"
echo 'drawbridge:x:65532:' >"$root/etc/group"
