# The gateway as an image: its locked dependencies and nothing else, under a user of its own.
#
#   docker build -t turnout .
#   docker run --read-only --tmpfs /tmp -p 8080:8080 -p 8081:8081 -v turnout:/var/lib/turnout \
#     -v ./configs/quickstart:/etc/turnout:ro turnout
#
# The root may be read-only: state and cache are on the volume, and /tmp holds what the workers count. The
# admin listener is on the container's own loopback until you give it a token:
#
#   -e TURNOUT_ADMIN_HOST=0.0.0.0 -e TURNOUT_ADMIN_TOKEN="$(openssl rand -hex 32)" -p 127.0.0.1:8082:8082

FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/turnout
WORKDIR /src
# The dependencies first: they change less often than the code.
COPY requirements/run.lock requirements/
RUN /opt/turnout/bin/python -m pip install --require-hashes --only-binary :all: -r requirements/run.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY registry_client registry_client
# pip leaves the bytecode, which nobody can write later; itself it is of no use at run time.
RUN /opt/turnout/bin/python -m pip install --no-deps . \
 && /opt/turnout/bin/python -m pip uninstall -y pip

FROM python:3.12-slim
LABEL org.opencontainers.image.title="Turnout" \
      org.opencontainers.image.description="The gateway between applications and their models' versions" \
      org.opencontainers.image.licenses="Apache-2.0"
# A number, so that Kubernetes can check runAsNonRoot, and the same one in every release, because it owns the volume.
RUN groupadd --gid 10001 turnout \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/turnout --no-create-home --shell /usr/sbin/nologin turnout \
 && install -d -o 10001 -g 10001 -m 0750 /var/lib/turnout \
 && install -d /etc/turnout
COPY --from=build /opt/turnout /opt/turnout
ENV PATH=/opt/turnout/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TURNOUT_HOST=0.0.0.0 \
    TURNOUT_STATE_DIR=/var/lib/turnout/state \
    TURNOUT_CACHE_DIR=/var/lib/turnout/cache
USER 10001:10001
WORKDIR /var/lib/turnout
VOLUME /var/lib/turnout
EXPOSE 8080 8081 8082
# Ready, not merely alive: what a container without an orchestrator is asked for. In Kubernetes the probes of
# the pod take its place.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:%s/v2/health/ready' % os.environ.get('TURNOUT_PORT', '8080'), timeout=2)"]
ENTRYPOINT ["turnout"]
CMD ["serve", "--config", "/etc/turnout/turnout.yaml"]
