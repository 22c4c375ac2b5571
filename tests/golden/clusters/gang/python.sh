#!/bin/sh
if [ -x "$SWEEPER_TEMP_DIR/python" ]; then exec "$SWEEPER_TEMP_DIR/python" "$@"; else exec '/opt/it'"'"'s mine/bin/python' "$@"; fi
