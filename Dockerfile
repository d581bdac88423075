# One image for each program: docker build --target requestor --tag decoupled/requestor:0.1.0 .
# Each is built from its own sources and what it depends on, so that a change of one side leaves the image
# of the other as it is.

FROM rust:1.95-slim-bookworm AS dependencies
WORKDIR /decoupled
COPY Cargo.toml Cargo.lock ./
COPY crates/contract/Cargo.toml crates/contract/
COPY crates/workqueue/Cargo.toml crates/workqueue/
COPY crates/observe/Cargo.toml crates/observe/
COPY requestor/Cargo.toml requestor/
COPY generator/Cargo.toml generator/
COPY viewer/Cargo.toml viewer/
COPY lab/Cargo.toml lab/
# The libraries of others are compiled with programs that do nothing yet, in a layer that stays until a
# manifest changes. All of the workspace is named here and below, because cargo would choose other
# features of them for one member alone, and compile them again. Tests and benchmarks are not among what is
# copied, but cargo wants to see those that a manifest names.
RUN for crate in crates/*/ requestor generator viewer lab; do mkdir "$crate/src" && touch "$crate/src/lib.rs"; done \
    && mkdir -p lab/tests/page crates/contract/benches && touch lab/tests/page/main.rs crates/contract/benches/messages.rs \
    && for program in requestor generator viewer lab; do echo 'fn main() {}' >"$program/src/main.rs"; done \
    && cargo build --release --locked --workspace --bins

# What both sides share. Cargo goes by the times of files, and takes sources for unchanged that are older
# than the programs which do nothing.
FROM dependencies AS shared
COPY crates/contract crates/contract
COPY crates/workqueue crates/workqueue
RUN touch crates/*/src/*.rs && cargo build --release --locked --workspace --lib

FROM shared AS requestor-build
COPY requestor requestor
RUN touch requestor/src/*.rs && cargo build --release --locked --workspace --bin requestor

FROM shared AS generator-build
COPY generator generator
RUN touch generator/src/*.rs && cargo build --release --locked --workspace --bin generator

FROM shared AS viewer-build
COPY crates/observe crates/observe
COPY viewer viewer
RUN touch crates/observe/src/*.rs viewer/src/*.rs && cargo build --release --locked --workspace --bin viewer

FROM shared AS lab-build
COPY requestor requestor
COPY crates/observe crates/observe
COPY lab lab
RUN mkdir backups && touch crates/observe/src/*.rs requestor/src/*.rs lab/src/*.rs && cargo build --release --locked --workspace --bin lab

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

FROM service AS viewer
LABEL org.opencontainers.image.title="viewer" \
      org.opencontainers.image.description="The page that shows the queues"
COPY --from=viewer-build /decoupled/target/release/viewer /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/viewer"]

FROM runtime AS lab
LABEL org.opencontainers.image.title="lab" \
      org.opencontainers.image.description="Declares the queues, and audits what went through them"
COPY --from=lab-build /decoupled/target/release/lab /usr/local/bin/
# A new volume that is mounted here belongs to whom this does.
COPY --from=lab-build --chown=65532:65532 /decoupled/backups /backups
ENTRYPOINT ["/usr/local/bin/lab"]
