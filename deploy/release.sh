#!/usr/bin/env bash
# A release in one command: starts it where nothing serves, has switchover prove and promote it, stops the old one.
#
#   release.sh jar JAR          two ports of this host, a process each
#   release.sh compose VERSION  two services of a compose project, an image of this version
#
# Whatever goes wrong before the promotion leaves everything as it was, and ends with the exit code of `switchover promote`
# (3: the release was not ready in time) or 1. It may be interrupted at any point, and run again: what an interrupted one left
# half done is finished first. Two at once are refused.
#
# Settings, from the environment:
#   SERVICE     the service in switchover's file, with the pools blue and green (default: shop)
#   SWITCHOVER  the command line of the running switchover
#               (default: switchover; for compose: $COMPOSE exec -T switchover switchover)
#   RELEASE_DIR where the lock, pids, jars and logs are (default: ./release)
#   STOP_AFTER  seconds that the old one has after SIGTERM, longer than its own graceful shutdown (default: 40)
#   jar:        BLUE_PORT, GREEN_PORT (8081, 8082), JAVA (java), JAVA_OPTS
#   compose:    COMPOSE ("docker compose"), run in the folder of the compose file, whose .env names BLUE_VERSION and GREEN_VERSION
set -euo pipefail

SERVICE=${SERVICE:-shop}
RELEASE_DIR=${RELEASE_DIR:-$PWD/release}
STOP_AFTER=${STOP_AFTER:-40}
COMPOSE=${COMPOSE:-docker compose}

say() { echo "release: $*"; }
die() { echo "release: $*" >&2; exit 1; }
usage() { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }

# --- one application, by its colour: a process of this host ---------------------------------------------------------------

jar_pid() { # COLOUR: its process, if it is ours and runs
    local pid
    pid=$(cat "$RELEASE_DIR/$1.pid" 2>/dev/null) || return 1
    # A number may have been given to somebody else since.
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "-jar $RELEASE_DIR/$1.jar" && echo "$pid"
}

jar_runs() { jar_pid "$1" >/dev/null; }
jar_keep() { [ ! -e "$RELEASE_DIR/$1.jar" ] || cp "$RELEASE_DIR/$1.jar" "$RELEASE_DIR/$1.jar.before"; }
jar_set() { cp "$2" "$RELEASE_DIR/$1.jar.new" && mv "$RELEASE_DIR/$1.jar.new" "$RELEASE_DIR/$1.jar"; }
jar_restore() { if [ -e "$RELEASE_DIR/$1.jar.before" ]; then mv "$RELEASE_DIR/$1.jar.before" "$RELEASE_DIR/$1.jar"; fi; }

jar_start() {
    local port=${BLUE_PORT:-8081} options
    [ "$1" = blue ] || port=${GREEN_PORT:-8082}
    read -ra options <<<"${JAVA_OPTS:-}"
    # In a session of its own, so that Ctrl-C here does not reach it, and without the lock, which would outlive this script.
    SERVER_PORT=$port setsid nohup "${JAVA:-java}" "${options[@]}" -jar "$RELEASE_DIR/$1.jar" \
        </dev/null >>"$RELEASE_DIR/$1.log" 2>&1 9>&- &
    echo $! >"$RELEASE_DIR/$1.pid"
}

jar_stop() {
    local pid waited=0
    pid=$(jar_pid "$1") || return 0
    kill -TERM "$pid" 2>/dev/null || return 0
    while jar_runs "$1"; do
        if [ "$waited" -ge $((STOP_AFTER * 10)) ]; then
            say "$1 did not end in ${STOP_AFTER}s and is killed"
            kill -KILL "$pid" 2>/dev/null || true
        fi
        sleep 0.1
        waited=$((waited + 1))
    done
    rm -f "$RELEASE_DIR/$1.pid"
}

jar_why() { tail -n 5 "$RELEASE_DIR/$1.log" >&2; }

# --- one application, by its colour: a service of the compose project -----------------------------------------------------

compose() { $COMPOSE "$@" 9>&-; }
compose_variable() { echo "${1^^}_VERSION"; }
compose_runs() { [ -n "$(compose exec -T "app-$1" true 2>/dev/null && echo yes)" ]; }
compose_keep() { cp -p .env "$RELEASE_DIR/$1.env.before" 2>/dev/null || : >"$RELEASE_DIR/$1.env.before"; }
compose_restore() { if [ -e "$RELEASE_DIR/$1.env.before" ]; then mv "$RELEASE_DIR/$1.env.before" .env; fi; }
compose_start() { compose up -d --no-deps "app-$1" >"$RELEASE_DIR/$1.log" 2>&1; }
compose_stop() { compose stop -t "$STOP_AFTER" "app-$1" >"$RELEASE_DIR/$1.log" 2>&1; }
compose_why() { compose logs --tail 5 "app-$1" >&2; }

compose_set() {
    local variable
    variable=$(compose_variable "$1")
    # The copy has the permissions of the original: there may be secrets in it.
    cp -p .env .env.new 2>/dev/null || true
    { grep -v "^$variable=" .env 2>/dev/null || true; echo "$variable=$2"; } >.env.new
    mv .env.new .env
    # Otherwise a container that is there already is started again as it was.
    compose rm -f -s "app-$1" >"$RELEASE_DIR/$1.log" 2>&1 || true
}

# --- switchover -----------------------------------------------------------------------------------------------------------

# One line for each pool of the service: its name, and active, draining or standby.
pools() {
    $SWITCHOVER status --json 9>&- | tr '{' '\n' | awk -F'"' -v service="$SERVICE" '
        /"active":/ { ours = ($4 == service) }
        ours && /"state":/ { name = $4; sub(/.*"state":"/, ""); sub(/".*/, ""); print name, $0 }'
}

state() { pools | awk -v name="$1" '$1 == name { print $2 }'; }

# --- the release ----------------------------------------------------------------------------------------------------------

phase=nothing promotion=

# Every way out leads through here.
finish() {
    local code=$?
    trap '' INT TERM HUP
    [ -z "$promotion" ] || kill "$promotion" 2>/dev/null || true
    case $phase in
        trying)
            # Interrupted or refused. If it is promoted nevertheless, it stays: it was proven.
            if [ "$(state "$idle" || true)" = active ]; then
                say "$idle serves already; the old one ($active) still runs: run this again to stop it" >&2
                [ "$code" -ne 0 ] || code=1
            elif $SWITCHOVER promote "$SERVICE" "$active" --wait none >/dev/null 2>&1 9>&- && [ "$(state "$active")" = active ]; then
                "${kind}_stop" "$idle" || true
                "${kind}_restore" "$idle"
                if [ -n "$ran" ]; then "${kind}_start" "$idle"; fi
                say "left as it was: $active serves" >&2
            else
                say "switchover does not answer, so nothing is stopped; when it does, run this again" >&2
            fi
            ;;
    esac
    exit "$code"
}

[ $# -eq 2 ] || usage
kind=$1 what=$2
case $kind in
    jar) SWITCHOVER=${SWITCHOVER:-switchover}; [ -f "$what" ] || die "there is no file $what" ;;
    compose) SWITCHOVER=${SWITCHOVER:-$COMPOSE exec -T switchover switchover} ;;
    *) usage ;;
esac
mkdir -p "$RELEASE_DIR"
RELEASE_DIR=$(cd "$RELEASE_DIR" && pwd)
exec 9>"$RELEASE_DIR/lock"
# For a moment, because the last child of one that was killed may hold it for as long as it sleeps.
flock -w 2 9 || die "another release is under way (it holds $RELEASE_DIR/lock)"

all=$(pools) || die "switchover does not answer: is it running, and is SWITCHOVER right ($SWITCHOVER)?"
active=$(awk '$2 == "active" { print $1 }' <<<"$all")
case $active in
    blue) idle=green ;;
    green) idle=blue ;;
    *) die "the service $SERVICE has no active pool blue or green; its pools: ${all:-none}" ;;
esac

# Left by an interrupted release, or by a drain that took long: somebody may still be served there.
if [ "$(state "$idle")" = draining ]; then
    say "$idle still drains, waiting for it"
    while [ "$(state "$idle")" = draining ]; do sleep 0.2; done
fi

ran=
if "${kind}_runs" "$idle"; then ran=yes; fi
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

say "$active serves; starting $what as $idle"
"${kind}_keep" "$idle"
phase=trying
"${kind}_stop" "$idle"
"${kind}_set" "$idle" "$what"
if ! "${kind}_start" "$idle"; then
    say "$idle could not be started:" >&2
    tail -n 5 "$RELEASE_DIR/$idle.log" >&2
    exit 1
fi

# In the background, so that a release whose process ends at once is not waited for, and so that signals are heard.
$SWITCHOVER promote "$SERVICE" "$idle" --wait drained 9>&- &
promotion=$!
code=0
while kill -0 "$promotion" 2>/dev/null; do
    if ! "${kind}_runs" "$idle" && [ "$(state "$idle" || true)" != active ]; then
        say "$idle has ended by itself; its last words:" >&2
        "${kind}_why" "$idle"
        exit 1
    fi
    sleep 0.3
done
wait "$promotion" || code=$?
promotion=
if [ "$code" -ne 0 ]; then
    exit "$code"
fi

phase=promoted
say "$idle serves; stopping $active"
"${kind}_stop" "$active"
say "done"
