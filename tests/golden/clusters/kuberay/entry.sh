#!/bin/sh
# The entrypoint of the RayJob, on its head. KubeRay has started Ray.
if ! mkdir -- '/store/lr search/trials/000/attempt-1/gang/entered'; then
    echo "sweeper: this attempt has run already; a retry is a new attempt" >&2
    exit 70
fi
python3 -I -S '/store/lr search/gang-0123/listen.py' '/store/lr search/trials/000/attempt-1' 0 &
exec python3 -I -S '/store/lr search/gang-0123/node.py' run '/store/lr search/trials/000/attempt-1' 0
