# A small image: our binary, the libraries it links, and the system's certificate authorities. No
# shell, no package manager; the health check is the binary's own command.
#
#   docker build -t drawbridge:0.1.0 --build-arg DRAWBRIDGE_COMMIT="$(git rev-parse --short HEAD)" .
#
# Runs as user 65532 with a read-only root file system; everything it writes is in /data.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src ./src
COPY config ./config
COPY migrations ./migrations
COPY streams ./streams
ARG DRAWBRIDGE_COMMIT=unknown
ENV DRAWBRIDGE_COMMIT=$DRAWBRIDGE_COMMIT
RUN cargo build --locked --release --bin drawbridge \
    && config/compose/image.sh target/release/drawbridge /image \
    && mkdir /empty

FROM scratch
COPY --from=build /image /
COPY --from=build --chown=65532:65532 /empty /data
ENV PATH=/usr/local/bin \
    DRAWBRIDGE_DATA_DIR=/data
USER 65532:65532
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s CMD ["/usr/local/bin/drawbridge", "health"]
ENTRYPOINT ["/usr/local/bin/drawbridge"]
CMD ["run"]
