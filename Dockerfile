# switchover in a container: docker build -t switchover .
#
# With the commit in `switchover --version`: docker build --build-arg COMMIT="$(git rev-parse --short=12 HEAD)" -t switchover .
#
# Both stages use the same Debian release, so that the binary finds the C library that it was linked with. For other
# architectures: docker buildx build --platform linux/amd64,linux/arm64 .

# The base images are arguments, so that they can be pinned: `make digests` prints their current digests as arguments for
# `docker build`. Releases use them; renew them for security updates.
ARG RUST_IMAGE=rust:1-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /src

# Only the dependencies, with placeholder sources: this layer stays cached until one of these files changes.
COPY Cargo.toml Cargo.lock build.rs ./
COPY patches patches
RUN mkdir -p src benches/cpu \
    && printf '//! Placeholder.\nfn main() {}\n' > src/main.rs \
    && cp src/main.rs benches/cpu/main.rs \
    && echo '//! Placeholder.' > src/lib.rs \
    && cargo build --release --locked \
    && rm -r src

COPY src src
ARG COMMIT
# The placeholders are newer than the sources, so Cargo would not build the sources.
RUN touch src/main.rs src/lib.rs \
    && SWITCHOVER_COMMIT="$COMMIT" cargo build --release --locked

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="switchover" \
      org.opencontainers.image.description="A load balancer that replaces the application behind it, under load, without a failed request" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/target/release/switchover /usr/local/bin/switchover
# The root certificates for `upstream.tls` without `ca`; the slim image has none.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt

# A numeric id that no user of the host has. In a container it may listen on ports below 1024.
USER 65532:65532
# Mount the folder, not the file: editors and `promote` replace the file, and a file mount keeps the old one.
ENV SWITCHOVER_CONFIG=/etc/switchover/switchover.yaml
EXPOSE 8080 9901

# Every command reads the file above: docker exec CONTAINER switchover status
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["switchover", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["switchover"]
CMD ["run"]
