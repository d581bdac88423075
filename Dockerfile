# One image for each program: docker build --target requestor --tag decoupled/requestor:0.1.0 .
# Each is built from its own sources and what it depends on, so that a change of one side leaves the image
# of the other as it is.

# The manifests of all members of the workspace, each with a library and programs that do nothing yet.
FROM rust:1.95-slim-bookworm AS manifests
WORKDIR /decoupled
COPY . .
# Tests and benchmarks are not among what is copied, but cargo wants to see those that a manifest names.
RUN find . -type f ! -name Cargo.toml ! -name Cargo.lock ! -path '*/src/main.rs' ! -path '*/src/lib.rs' -delete \
    && find . -type d -empty -delete \
    && for manifest in $(find . -mindepth 2 -name Cargo.toml); do \
        cd "/decoupled/${manifest%/Cargo.toml}" && mkdir -p src || exit; \
        if [ -e src/main.rs ]; then echo 'fn main() {}' >src/main.rs; fi; \
        if [ -e src/lib.rs ] || [ ! -e src/main.rs ]; then : >src/lib.rs; fi; \
        awk -F '"' \
            'function named() { if (name) print path ? path : kind "/" name ".rs"; name = path = kind = "" } \
            /^\[/ { named() } \
            /^\[\[bin]]/ { kind = "src/bin" } /^\[\[test]]/ { kind = "tests" } \
            /^\[\[bench]]/ { kind = "benches" } /^\[\[example]]/ { kind = "examples" } \
            kind && /^name *=/ { name = $2 } kind && /^path *=/ { path = $2 } \
            END { named() }' Cargo.toml \
        | while read -r file; do mkdir -p "$(dirname "$file")" && echo 'fn main() {}' >"$file"; done; \
    done

# The libraries of others are compiled with them, in a layer that stays until a manifest changes. All of the
# workspace is named here and below, because cargo would choose other features of these libraries for one
# member alone, and compile them again.
FROM rust:1.95-slim-bookworm AS dependencies
WORKDIR /decoupled
COPY --from=manifests /decoupled .
RUN cargo build --release --locked --workspace --bins

# What all programs share. Cargo goes by the times of files, and takes sources for unchanged that are older
# than the programs which do nothing.
FROM dependencies AS shared
COPY crates/workqueue crates/workqueue
COPY crates/contract crates/contract
RUN touch crates/*/src/*.rs && cargo build --release --locked --workspace --lib

FROM shared AS requestor-build
COPY requestor requestor
RUN touch requestor/src/*.rs && cargo build --release --locked --workspace --bin requestor

FROM shared AS generator-build
COPY generator generator
RUN touch generator/src/*.rs && cargo build --release --locked --workspace --bin generator

FROM shared AS gateway-build
COPY crates/observe crates/observe
COPY requestor requestor
COPY gateway gateway
RUN touch crates/observe/src/*.rs requestor/src/*.rs gateway/src/*.rs \
    && cargo build --release --locked --workspace --bin gateway

FROM shared AS cli-build
COPY crates/observe crates/observe
COPY cli cli
RUN mkdir backups && touch crates/observe/src/*.rs cli/src/*.rs \
    && cargo build --release --locked --workspace --bin decoupled

# Nothing but the C library, certificates, and a user that is nobody. It writes nowhere: run it with
# --read-only.
FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
USER 65532:65532
ARG REVISION=unknown
LABEL org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="$REVISION"

# Its health: docker exec <container> /usr/local/bin/<program> healthcheck
FROM runtime AS service
ENV ADMIN_ADDR=0.0.0.0:8080
EXPOSE 8080

FROM service AS requestor
LABEL org.opencontainers.image.title="requestor" \
      org.opencontainers.image.description="Asks for random strings, and stores them"
COPY --from=requestor-build /decoupled/target/release/requestor /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/requestor"]

FROM service AS generator
LABEL org.opencontainers.image.title="generator" \
      org.opencontainers.image.description="Makes random strings, and marks those that were stored"
COPY --from=generator-build /decoupled/target/release/generator /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/generator"]

FROM service AS gateway
LABEL org.opencontainers.image.title="gateway" \
      org.opencontainers.image.description="The HTTP API, and the page that shows the queues"
COPY --from=gateway-build /decoupled/target/release/gateway /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/gateway"]

FROM runtime AS cli
LABEL org.opencontainers.image.title="decoupled" \
      org.opencontainers.image.description="Declares the queues, and audits what went through them"
COPY --from=cli-build /decoupled/target/release/decoupled /usr/local/bin/
# A new volume that is mounted here belongs to whom this does.
COPY --from=cli-build --chown=65532:65532 /decoupled/backups /backups
ENTRYPOINT ["/usr/local/bin/decoupled"]
