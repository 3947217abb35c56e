//! A saved file as an HTTP request, where it is one.

use bytes::Bytes;

/// A file, sorted.
pub(in crate::protocols) enum Saved {
    Empty,
    /// A request line, but no end of the headers.
    Cut,
    Request {
        head: Head,
        body: Bytes,
    },
    /// Anything else.
    Other(Bytes),
}

/// Request line and headers.
pub(in crate::protocols) struct Head {
    pub method: String,
    pub target: String,
    headers: Vec<(String, String)>,
}

impl Head {
    /// Every value of a header; the name in lower case.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The first value of a header.
    pub fn one<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }
}

/// Sorts a file.
pub(in crate::protocols) fn read(input: &[u8]) -> Saved {
    if input.trim_ascii().is_empty() {
        return Saved::Empty;
    }
    let Some((method, target)) = request_line(input) else {
        return Saved::Other(Bytes::copy_from_slice(input));
    };
    match split_head(input) {
        None => Saved::Cut,
        Some((lines, body)) => Saved::Request {
            head: Head {
                method,
                target,
                headers: headers(lines),
            },
            body: Bytes::copy_from_slice(body),
        },
    }
}

/// Method and target, if the first line is `METHOD TARGET HTTP/…`.
fn request_line(input: &[u8]) -> Option<(String, String)> {
    let line = input.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.trim_end_matches('\r');
    let mut words = line.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let plain = !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase());
    (plain && version.starts_with("HTTP/") && words.next().is_none())
        .then(|| (method.to_owned(), target.to_owned()))
}

/// The lines before the first empty one, and what follows it. Line ends may have lost their CR.
fn split_head(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut start = 0usize;
    for line in input.split_inclusive(|b| *b == b'\n') {
        let next = start.saturating_add(line.len());
        if matches!(line, b"\n" | b"\r\n") {
            return Some((input.get(..start)?, input.get(next..)?));
        }
        start = next;
    }
    None
}

fn headers(lines: &[u8]) -> Vec<(String, String)> {
    lines
        .split(|b| *b == b'\n')
        .skip(1)
        .filter_map(|line| {
            let line = String::from_utf8_lossy(line);
            let (name, value) = line.split_once(':')?;
            Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect()
}

/// A chunked body put together; `None`: it is not chunked.
pub(in crate::protocols) fn dechunk(body: &[u8]) -> Option<Bytes> {
    let mut rest = body;
    let mut whole = Vec::new();
    loop {
        let end = rest.iter().position(|b| *b == b'\n')?;
        let (line, behind) = rest.split_at_checked(end)?;
        let size = std::str::from_utf8(line).ok()?.trim();
        let size = size.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = behind.get(1..)?;
        if size == 0 {
            return Some(whole.into());
        }
        whole.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?;
        rest = rest.strip_prefix(b"\r\n").or(rest.strip_prefix(b"\n"))?;
    }
}
