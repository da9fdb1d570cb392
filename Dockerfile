# tractode as a container: build (virtual environment) · templates (optional, baked in) · run · test.
# No compiler is carried: torch.compile is not used by default, and gcc would add about 150 MB (docs/decisions/0004).
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS build
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# The dependencies are a layer of their own, kept until pyproject.toml or constraints.txt change.
RUN python3 -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))' > /tmp/requirements.txt \
 && /opt/venv/bin/pip install --no-cache-dir --no-compile -c constraints.txt -r /tmp/requirements.txt
COPY README.md LICENSE ./
COPY bidsapp ./bidsapp
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps .

# Templates to bake in: put a populated TEMPLATEFLOW_HOME at ./templateflow of the build context, or leave it out.
# The built-in MNI152NLin2009aSym needs nothing.
FROM ${BASE_IMAGE} AS templates
RUN mkdir -p /templateflow
COPY LICENSE templateflo[w] /templateflow/
RUN rm -f /templateflow/LICENSE

FROM ${BASE_IMAGE} AS run
ARG DEBIAN_FRONTEND=noninteractive
ARG VERSION=0.1.0
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 tractode
COPY --from=build /opt/venv /opt/venv
COPY --from=templates --chown=tractode /templateflow /templateflow
ENV PATH=/opt/venv/bin:$PATH LANG=C.UTF-8 PYTHONNOUSERSITE=1 NO_ET=1 \
    TEMPLATEFLOW_HOME=/templateflow TRACTODE_CONTAINER_TAG=tractode:${VERSION}
LABEL org.opencontainers.image.title="tractode" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/venv/bin/tractode"]

FROM run AS test
USER root
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY bidsapp ./bidsapp
COPY tests ./tests
RUN /opt/venv/bin/python -m pip install --no-cache-dir -c constraints.txt '.[test]'
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/venv/bin/python", "-m", "pytest"]

# The last stage is what `docker build .` makes.
FROM run
