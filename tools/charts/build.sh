#!/usr/bin/env bash
# Rebuilds sweeps/report/assets/vendor/ from npm, in a folder of its own. Needs node and npm; versions are in package.json.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
vendor=$here/../../sweeps/report/assets/vendor
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp "$here/package.json" "$here/entry.js" "$work"
cd "$work"
npm install --no-audit --no-fund --silent
version() { node -p "require('./node_modules/$1/package.json').version"; }

npx esbuild entry.js --bundle --minify --format=iife --global-name=echarts --target=es2020 --charset=ascii \
  --legal-comments=none --log-level=warning --outfile=echarts.min.js \
  --banner:js="/*! Apache ECharts $(version echarts), zrender $(version zrender), tslib $(version tslib): see LICENSE */"

mkdir -p "$vendor"
cp echarts.min.js "$vendor/echarts.min.js"
{
  echo "Apache ECharts $(version echarts)"; echo; cat node_modules/echarts/LICENSE; echo; cat node_modules/echarts/NOTICE
  echo; echo "zrender $(version zrender)"; echo; cat node_modules/zrender/LICENSE
  echo; echo "tslib $(version tslib)"; echo; cat node_modules/tslib/LICENSE.txt
} > "$vendor/LICENSE"
sha256sum "$vendor/echarts.min.js" | cut -d' ' -f1
