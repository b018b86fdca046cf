# The program alone, in a small image. Build: docker build -t reshard .
FROM rust:1-bookworm AS build
WORKDIR /build
COPY . .
RUN cargo build --release --locked --package reshard --bin reshard

FROM debian:bookworm-slim
# For clusters whose certificates come from a public authority that the system knows.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home reshard
COPY --from=build /build/target/release/reshard /usr/local/bin/reshard
COPY LICENSE /usr/share/doc/reshard/LICENSE
USER 10001
# Where applications connect. The admin port listens on loopback only: use `docker exec`.
EXPOSE 27017
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["reshard", "healthcheck"]
ENTRYPOINT ["reshard"]
CMD ["serve", "--config", "/etc/reshard/reshard.toml"]
