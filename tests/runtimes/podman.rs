//! S2: images, containers and their storage root on the mount, with podman.

use crate::in_all_weathers;
use crate::lab::{Lab, Weather};
use crate::roots::{PAGE, SMALL_ROOT};

/// The operator's podman. Neither systemd nor a journal is needed; the limits are given because the
/// machine may not allow raising them; `runc` because crun does not know every mix of cgroups.
const OPERATOR: &str = r#"
P="podman --root $M/podman --runroot /run/podman-root --storage-driver $DRIVER --cgroup-manager cgroupfs --events-backend file --runtime runc"
LIMITS="--ulimit nofile=4096:4096 --ulimit nproc=4096:4096"
serve() { $P run -d $LIMITS --network host -v $M/shared:/data --name "$1" "$2" /bin/busybox httpd -f -p "$3" -h /www >/dev/null; }
once() { local image=$1; shift; $P run --rm $LIMITS --network none -v $M/shared:/data "$image" "$@"; }
"#;

in_all_weathers!(overlay, with_overlay);
in_all_weathers!(vfs, with_vfs);

fn with_overlay(weather: Weather) {
    versions(weather, "overlay", "overlay");
}

fn with_vfs(weather: Weather) {
    versions(weather, "vfs", "fuse.tercet");
}

/// A site's image is built, served, changed, committed; old and new run side by side over shared data;
/// the old one goes. `root_type` is the filesystem that a container must see as its root: podman falls
/// back to fuse-overlayfs in silence where the kernel refuses.
fn versions(weather: Weather, driver: &str, root_type: &str) {
    let mut lab = Lab::open(&format!("podman-{driver}"), weather);
    let sh = |lab: &Lab, script: &str| {
        lab.with(&format!("DRIVER={driver}\n{OPERATOR}{PAGE}{SMALL_ROOT}"), script)
    };
    sh(&lab, "small_root $W/root; tar -C $W/root -cf $W/root.tar .; mkdir $M/shared; chmod 1777 $M/shared
        $P info >/dev/null; $P import -q $W/root.tar site:v1 >/dev/null");
    lab.turn();
    sh(&lab, "serve one site:v1 8081; page localhost:8081 v1");
    let kind = sh(&lab, "$P exec one /bin/grep ' / ' /proc/mounts | cut -d' ' -f3");
    assert_eq!(kind.trim(), root_type, "the root filesystem that a container sees");
    // Copied up, whited out, replaced by an opaque directory; set-user-id survives a change of times.
    sh(&lab, "$P exec one /bin/sh -c 'echo v2 >/www/index.html; rm /bin/rm; mkdir /www/deep; echo x >/www/deep/x; touch /bin/privileged; mv /opt /old'
        page localhost:8081 v2; $P commit -q one site:v2 >/dev/null");
    lab.turn();
    sh(&lab, "serve two site:v2 8082; serve old site:v1 8083
        page localhost:8081 v2; page localhost:8082 v2; page localhost:8083 v1
        $P exec two /bin/sh -c '[ ! -e /bin/rm ] && [ ! -e /opt ] && [ -e /old/file ] && [ -u /bin/privileged ] && [ -g /bin/privileged ]'
        $P exec old /bin/sh -c '[ -e /bin/rm ] && [ ! -e /www/deep ]'");
    // One log, appended by both: no line is lost. One lock: one winner.
    sh(&lab, "for c in two old; do $P exec $c /bin/sh -c 'for n in 1 2 3 4 5 6 7 8 9; do for m in 0 1 2 3 4 5 6 7 8 9; do echo '$c' >>/data/log; done; done' & done; wait
        [ $(wc -l <$M/shared/log) = 180 ]
        for c in two old; do $P exec $c /bin/sh -c 'set -C; echo '$c' >/data/lock' 2>/dev/null && echo won >>$W/won & done; wait; [ $(wc -l <$W/won) = 1 ]");
    lab.turn();
    sh(&lab, "sleep 1; mkdir $W/b; printf 'FROM site:v2\\nRUN echo v3 >/www/index.html && chown -R 1000 /www\\nUSER 1000\\n' >$W/b/Dockerfile
        $P build -q $LIMITS --network host --isolation chroot -t site:v3 $W/b >/dev/null
        [ \"$(once site:v3 /bin/sh -c 'cat /www/index.html; id -u; echo by-user >/www/mine && cat /www/mine; echo shared >/data/by-user')\" = \"$(printf 'v3\\n1000\\nby-user')\" ]
        stat -c %u $M/shared/by-user | grep -qx 1000");
    lab.turn();
    // The switch: the old one goes, what it had is gone; an image leaves and comes back by a file.
    sh(&lab, "$P rm -f -t 0 one old >/dev/null; $P save -q -o $W/v3.tar site:v3; $P rmi -f site:v3 >/dev/null; page localhost:8082 v2
        $P load -q -i $W/v3.tar >/dev/null; [ \"$(once site:v3 /bin/cat /www/index.html)\" = v3 ]
        $P volume create v >/dev/null; $P run --rm $LIMITS --network none -v v:/v --read-only site:v2 /bin/sh -c 'echo kept >/v/f'
        [ \"$($P run --rm $LIMITS --network none -v v:/v site:v1 /bin/cat /v/f)\" = kept ]; $P stop -t 0 two >/dev/null");
    lab.turn();
    lab.close(|lab| {
        // A host that has only just booted, on two banks that were both down meanwhile.
        sh(lab, "$P start two >/dev/null; page localhost:8082 v2; [ \"$(once site:v3 /bin/cat /www/index.html)\" = v3 ]
            $P exec two /bin/sh -c '[ ! -e /bin/rm ] && [ -u /bin/privileged ]'; $P rm -f -t 0 two >/dev/null; $P rmi -a -f >/dev/null
            [ -z \"$($P images -q)\" ]; [ $(wc -l <$M/shared/log) = 180 ]");
    });
}
