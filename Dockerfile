# switchover in a container: docker build -t switchover .
#
# With the commit in `switchover --version`: docker build --build-arg COMMIT="$(git rev-parse --short=12 HEAD)" -t switchover .
#
# Both stages are Debian's current release but one, so that the binary finds the C library that it was linked with. For other
# processors: docker buildx build --platform linux/amd64,linux/arm64 .

# Each base image is an argument, so that it can be pinned: `make digests` prints both with the digests that their tags have now,
# as arguments for `docker build`. A release is built with them; they are renewed with the tags, for the security updates.
ARG RUST_IMAGE=rust:1-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /src

# The dependencies alone, in a layer that lasts until one of these files changes; the sources are only stood in for.
COPY Cargo.toml Cargo.lock build.rs ./
COPY patches patches
RUN mkdir -p src benches/cpu \
    && printf '//! Stands in.\nfn main() {}\n' > src/main.rs \
    && cp src/main.rs benches/cpu/main.rs \
    && echo '//! Stands in.' > src/lib.rs \
    && cargo build --release --locked \
    && rm -r src

COPY src src
ARG COMMIT
# The stand-ins are newer than the sources, by which Cargo would take them for built.
RUN touch src/main.rs src/lib.rs \
    && SWITCHOVER_COMMIT="$COMMIT" cargo build --release --locked

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="switchover" \
      org.opencontainers.image.description="A load balancer that replaces the application behind it, under load, without a failed request" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/target/release/switchover /usr/local/bin/switchover
# What `upstream.tls` without `ca` verifies peers by; the slim image has none of its own.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt

# Nobody's number, so that it is nobody on the host either. Ports below 1024 are open to it in a container.
USER 65532:65532
# Mount the folder and not the file: editors and `promote` replace the file, which a mounted file does not follow.
ENV SWITCHOVER_CONFIG=/etc/switchover/switchover.yaml
EXPOSE 8080 9901

# Each command goes by the file above: docker exec CONTAINER switchover status
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["switchover", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["switchover"]
CMD ["run"]
