#!/usr/bin/env bash
# Build the container image with podman and try it: no network, read-only root, no capabilities, another user.
#
#   CT_ENV=settings.sh bash benchmarks/image.sh [TAG]
#
# CT_ENV, if given, is sourced first: where podman needs settings of its own it may define CT_MOUNTS (an array of build-time
# mounts, for a package client's configuration) and storage variables. Not part of CI: the build takes minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
tag=${1:-localhost/tractode:dev}
CT_MOUNTS=()
[ -z "${CT_ENV:-}" ] || . "$CT_ENV"
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' bidsapp/tractode/__init__.py)

podman build --network host --format docker --layers "${CT_MOUNTS[@]}" --build-arg VERSION="$version" --tag "$tag" .

run() { podman run --rm --network none --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --user 54321:54321 "$@"; }
out=$(mktemp -d)
chmod 777 "$out"
run "$tag" --version
run --volume "$out:/out" --entrypoint tractode-simulate "$tag" /out/bids --participants 1 --seed 1 --resolution 3 --shells 1000:20
mkdir -m 777 "$out/derivatives"
run --volume "$out/bids:/data:ro" --volume "$out/derivatives:/out" "$tag" /data /out participant \
  --output-spaces MNI152NLin2009aSym --sloppy -w /tmp/work
ls "$out/derivatives"
podman image inspect --format '{{.Size}}' "$tag"
