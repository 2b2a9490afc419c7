#!/usr/bin/env bash
# Prints, as shell settings, the cluster and the images that the end-to-end tests use. Without a cluster in $KUBECONFIG
# it starts the one of the test bed in $TESTBED and brings images of this checkout into it; with one, OPERATOR_IMAGE,
# TRAINER_IMAGE, CORE_IMAGE and S3_IMAGE must name images that it can pull.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

TESTBED=${TESTBED:-../shared/testbed/cluster}

setting() { printf 'export %s=%q\n' "$1" "$2"; }

# digest PATH...: of what an image is made from; it is the image's tag, so that an image is never older than its tag.
digest() {
    find .dockerignore "$@" -type f ! -path '*/__pycache__/*' ! -name '*.so' -print0 | sort -z | xargs -0 sha256sum |
        sha256sum | cut -c 1-12
}

known() { kubectl get nodes -o jsonpath='{.items[*].status.images[*].names[*]}' | tr ' ' '\n' | grep -q "/$1\$"; }

# image VARIABLE NAME DOCKERFILE PATH...: built and loaded unless the cluster has it.
image() {
    local variable=$1 name=$2 dockerfile=$3 made; shift 3
    name+=:$(digest "$dockerfile" "$@")
    if ! known "$name"; then
        made=$(mktemp)
        # The cluster has no GPUs but in name.
        sed 's/^ARG ACCELERATOR=cuda$/ARG ACCELERATOR=none/' "$dockerfile" >"$made"
        "$TESTBED" image "$made" "$name" . >&2
        rm -f "$made"
    fi
    setting "$variable" "$name"
}

PATH+=:$(go env GOPATH 2>/dev/null || true)/bin   # where `make tools` puts Helm
command -v helm >/dev/null || { echo 'no helm: `make tools` installs it' >&2; exit 1; }

if [[ -z ${KUBECONFIG:-} ]]; then
    [[ -x $TESTBED ]] || { echo "no cluster: set KUBECONFIG, or TESTBED to a test bed's script" >&2; exit 1; }
    KUBECONFIG=$("$TESTBED" up --kuberay --kueue --gpus 4)
    export KUBECONFIG
    PATH+=:$("$TESTBED" envtest)
    package=(pyproject.toml README.md allocator)
    image OPERATOR_IMAGE ensemble-operator operator/Dockerfile \
        "${package[@]:0:2}" requirements/{operator,build}.txt operator allocator/ensemble_core/*.py allocator/ensemble_core/api
    image CORE_IMAGE ensemble-core allocator/Dockerfile "${package[@]}" requirements/{core,triton}.txt
    image TRAINER_IMAGE ensemble-trainer trainer-image/Dockerfile \
        "${package[@]}" requirements/{core,local,cpu}.txt trainer-image
    image S3_IMAGE ensemble-s3 tests/e2e/Dockerfile requirements/s3.txt
fi
setting KUBECONFIG "$KUBECONFIG"
setting PATH "$PATH"
