# One image for each program: docker build --target requestor --tag decoupled/requestor:0.2.0 .

# Builds all programs in a directory that lasts from one build to the next, so that cargo compiles only what has changed.
# Cargo compares the times of files. So a file is replaced there only if its content differs, whatever its time is.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
# Either `release`, which builds quickly after a change, or `dist`, whose programs need a little less processor time.
ARG PROFILE=release
# For `release`, the linker optimises across crates, and caches its results, so that a change of one crate does not affect
# the others. This is the linker that comes with the compiler, because only that one reads the compiler's bitcode.
RUN --mount=type=bind,target=/source \
    --mount=type=cache,id=decoupled-build,target=/build,sharing=locked \
    --mount=type=cache,target=/usr/local/cargo/registry \
    find . -path ./target -prune -o -type f -exec sh -c '[ -e "/source/$1" ] || rm "$1"' - {} \; \
    && find /source -type f -exec sh -c 'file=${1#/source/}; cmp -s "$1" "$file" || install -D -m 644 "$1" "$file"' - {} \; \
    && host=$(rustc --print host-tuple) && lld=$(rustc --print sysroot)/lib/rustlib/$host/bin/gcc-ld \
    && if [ "$PROFILE" = release ] && [ -x "$lld/ld.lld" ]; then \
        export RUSTFLAGS="-Clinker-plugin-lto -Clink-arg=-fuse-ld=lld -Clink-arg=-B$lld -Clink-arg=-Wl,--thinlto-cache-dir=/build/target/thinlto"; \
    fi \
    && cargo build --profile "$PROFILE" --target "$host" --locked --workspace --bin requestor --bin generator --bin gateway --bin decoupled \
    && mkdir -p /programs /backups \
    && for program in requestor generator gateway decoupled; do cp "target/$host/$PROFILE/$program" /programs/; done

# Only the C library, certificates, and the user nonroot. The programs write no files, except for backups into a volume:
# run the image with --read-only.
FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
USER 65532:65532
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.revision="$REVISION"

# Its health: docker exec <container> /usr/local/bin/<program> healthcheck
FROM runtime AS service
ENV ADMIN_ADDR=0.0.0.0:8080
EXPOSE 8080

FROM service AS requestor
LABEL org.opencontainers.image.title="requestor" \
      org.opencontainers.image.description="Asks for random strings, and stores them"
COPY --from=build /programs/requestor /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/requestor"]

FROM service AS generator
LABEL org.opencontainers.image.title="generator" \
      org.opencontainers.image.description="Makes random strings, and marks those that were stored"
COPY --from=build /programs/generator /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/generator"]

FROM service AS gateway
LABEL org.opencontainers.image.title="gateway" \
      org.opencontainers.image.description="The HTTP API, and the page that shows the queues"
COPY --from=build /programs/gateway /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/gateway"]

FROM runtime AS cli
LABEL org.opencontainers.image.title="decoupled" \
      org.opencontainers.image.description="Declares the queues, and audits what went through them"
COPY --from=build /programs/decoupled /usr/local/bin/
# A new volume that is mounted here gets the owner of this directory.
COPY --from=build --chown=65532:65532 /backups /backups
ENTRYPOINT ["/usr/local/bin/decoupled"]
