#!/usr/bin/env bash
# Build helm from its Go module into FILE: build_helm.sh VERSION FILE. About three minutes of one core, once.
# Root builds as nobody, since a build of foreign code needs no privilege. Without Go it says so and ends with 0.
set -euo pipefail

version=$1 file=$2
if ! command -v go >/dev/null; then
  echo "skipped: no go here to build helm $version with; the tests that need it will skip"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/build" <<'BUILD'
export HOME=$PWD GOPATH=$PWD/go GOCACHE=$PWD/cache GOBIN=$PWD/bin GOTMPDIR=$PWD GOFLAGS=-modcacherw CGO_ENABLED=0
module=helm.sh/helm/v3
definition=$(go mod download -json "$module@v$1" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
# The version of Kubernetes that helm takes for granted without a cluster; else it would be an ancient one.
minor=$(sed -n 's|.*k8s.io/client-go v0\.\([0-9]*\)\..*|\1|p' "$definition")
values="-X $module/internal/version.version=v$1"
for package in chartutil lint/rules; do
  values+=" -X $module/pkg/$package.k8sVersionMajor=1 -X $module/pkg/$package.k8sVersionMinor=$minor"
done
exec nice go install -trimpath -ldflags "-s -w $values" "$module/cmd/helm@v$1"
BUILD
cd "$work"
if ((EUID == 0)); then
  chown nobody "$work"
  setpriv --reuid nobody --regid "$(id -g nobody)" --clear-groups --no-new-privs bash -eu build "$version"
else
  bash -eu build "$version"
fi
cd "$OLDPWD"
mkdir -p "$(dirname "$file")"
# By rename: a half-written program would count as built.
install -m 0755 "$work/bin/helm" "$file.new"
mv "$file.new" "$file"
