//! S1: a hosting service with one LXC container per site.

use crate::in_all_weathers;
use crate::lab::{Lab, Weather};
use crate::roots::{PAGE, debian};
use cluster::tree::Manifest;
use std::path::Path;
use std::time::Duration;

/// Shell functions of the operator. `site NAME ADDRESS` writes the configuration of a Debian container
/// whose root filesystem is a directory on the mount. No AppArmor, which the machine may lack.
const OPERATOR: &str = r#"
L=$M/lxc
bridge() { ip link add lxcbr0 type bridge; ip addr add 10.77.0.1/24 dev lxcbr0; ip link set lxcbr0 up; }
site() {
    mkdir -p "$L/$1/rootfs"; cat >"$L/$1/config" <<END
lxc.include = /usr/share/lxc/config/common.conf
lxc.net.0.type = veth
lxc.net.0.link = lxcbr0
lxc.net.0.flags = up
lxc.net.0.ipv4.address = $2/24
lxc.apparmor.profile = unconfined
lxc.mount.auto = proc:mixed sys:ro cgroup:mixed
lxc.rootfs.path = dir:$L/$1/rootfs
lxc.uts.name = $1
END
}
address() { sed -i "s,\(ipv4.address = \).*,\1$2/24," "$L/$1/config"; }
start() { lxc-start -P $L -n "$1" -o "$W/$1.log" -l INFO; lxc-wait -P $L -n "$1" -s RUNNING -t 10; }
stop() { lxc-stop -P $L -n "$1" -t 10; }
inside() { local name=$1; shift; lxc-attach -P $L -n "$name" --clear-env -- "$@" </dev/null; }
"#;

/// One of the names that the service gave its backups.
const BACKUP: &str = "user-site-Clone-2016-05-11-04:51:27";

fn root_of(lab: &Lab, name: &str) -> Manifest {
    Manifest::copied(&lab.cluster.path(format!("lxc/{name}/rootfs"))).expect("walk")
}

in_all_weathers!(a_service_of_debian_containers, service);

#[test]
fn a_service_of_debian_containers_while_banks_hang() {
    service(Weather::BanksHang);
}

fn service(weather: Weather) {
    let root = debian();
    let mut lab = Lab::open("lxc", weather);
    let sh = |lab: &Lab, script: &str| lab.with(&format!("{OPERATOR}{PAGE}"), script);
    sh(&lab, "bridge; mkdir $L");
    sh(&lab, &format!(
        "site template 10.77.0.2; tar -C $L/template/rootfs --numeric-owner --xattrs --xattrs-include='*' --acls -xpf {}
         echo v1 >$L/template/rootfs/var/www/html/index.html", root.display()));
    // `lxc-ls` is a readdir: it may never miss the template, whatever comes and goes beside it.
    let listing = lab.host().spawn(
        "listing",
        "while [ ! -e $W/enough ]; do
             lxc-ls -1 -P $M/lxc | grep -qx template || echo short >>$W/short; echo . >>$W/listings; sleep 0.05
         done",
    );
    lab.turn();
    // A clone is started, and has its address, within 5 s.
    let clone = sh(&lab, &format!(
        "began=$(date +%s%N); lxc-copy -P $L -n template -N site; echo $(( ($(date +%s%N) - began) / 1000000 ))
         lxc-copy -P $L -n template -N {BACKUP}"));
    println!("lxc-copy of a Debian root: {} ms", clone.lines().next().unwrap_or_default());
    let copied = |name: &str| {
        let mut all = root_of(&lab, name);
        // lxc-copy gives the copy its own name, and so `etc` a new entry.
        for named in ["etc/hostname", "etc/hosts", "etc"] {
            all.0.remove(Path::new(named));
        }
        all
    };
    let want = copied("template");
    assert!(want.0.len() > 5_000, "{} entries are no Debian", want.0.len());
    want.assert_same(&copied("site"), "lxc-copy");
    want.assert_same(&copied(BACKUP), "lxc-copy of a backup");
    let up = sh(
        &lab,
        "address site 10.77.0.11; began=$(date +%s%N); start site
        until lxc-info -P $L -n site -iH | grep -q 10.77.0.11; do sleep 0.05; done
        echo $(( ($(date +%s%N) - began) / 1000000 )); page 10.77.0.11 v1",
    );
    let up_ms: u64 = up.trim().parse().expect("milliseconds");
    println!("the site has its address after {up_ms} ms");
    assert!(up_ms < 5_000, "an address after {up_ms} ms");
    assert_eq!(
        sh(
            &lab,
            "inside site systemctl is-system-running --wait || inside site systemctl --failed"
        )
        .trim(),
        "running"
    );
    lab.turn();
    // Changed with lxc-attach, in use; the template is not.
    sh(&lab, "inside site sed -i s/v1/v2/ /var/www/html/index.html; page 10.77.0.11 v2
        inside site sh -c 'useradd -m customer && su customer -c \"echo mine >~/f; chmod 600 ~/f\" && getent passwd customer' >$W/customer
        inside site sh -c 'ping -c1 -W2 10.77.0.1 >/dev/null'   # a file capability, or a ping socket
        grep -qx v1 $L/template/rootfs/var/www/html/index.html");
    // A second container over the first, as overlayfs on the mount: old and new side by side.
    sh(&lab, "address template 10.77.0.2; lxc-copy -P $L -n template -N next -s -B overlayfs; address next 10.77.0.12; start next
        inside next grep -q ' / overlay ' /proc/mounts; page 10.77.0.12 v1
        inside next sh -c 'rm -r /usr/share/doc /usr/share/man; mkdir /usr/share/doc; sed -i s/v1/v3/ /var/www/html/index.html; chown www-data /usr/bin/passwd; chmod u+s /usr/bin/passwd'
        page 10.77.0.12 v3; page 10.77.0.11 v2");
    lab.turn();
    sh(&lab, "stop next; start next; page 10.77.0.12 v3
        inside next sh -c '[ -z \"$(ls /usr/share/doc)\" ] && [ ! -e /usr/share/man ] && [ -u /usr/bin/passwd ]'");
    // Backup, snapshot, restore.
    sh(&lab, "stop site; lxc-snapshot -P $L -n site; lxc-snapshot -P $L -n site -L | grep -q snap0; start site; page 10.77.0.11 v2
        inside site sh -c 'echo broken >/var/www/html/index.html; rm -r /home/customer'; page 10.77.0.11 broken");
    lab.turn();
    sh(&lab, "stop site; lxc-snapshot -P $L -n site -r snap0; address site 10.77.0.11; start site; page 10.77.0.11 v2
        inside site cat /home/customer/f | grep -qx mine; inside site stat -c %a:%U /home/customer/f | grep -qx 600:customer");
    sh(&lab, "stop site; lxc-snapshot -P $L -n site -d snap0; lxc-stop -k -P $L -n next");
    // Destroyed while a bank is away: they stay away when it returns.
    lab.turn();
    sh(
        &lab,
        &format!(
            "lxc-destroy -P $L -n next; lxc-destroy -P $L -n {BACKUP}; lxc-ls -1 -P $L | sort | tr '\\n' ' ' | grep -qx 'site template '"
        ),
    );
    lab.turn();
    lab.sh("touch $W/enough; sleep 0.5; [ ! -e $W/short ]; [ $(wc -l <$W/listings) -gt 20 ]");
    drop(listing);
    let (template, site) = (root_of(&lab, "template"), root_of(&lab, "site"));
    lab.close(|lab| {
        let when = "on the banks that were mended";
        template.assert_same(&root_of(lab, "template"), &format!("the template, {when}"));
        site.assert_same(&root_of(lab, "site"), &format!("the site, {when}"));
        let said = sh(lab, "lxc-ls -1 -P $L | sort | tr '\\n' ' '; bridge; start site; page 10.77.0.11 v2; lxc-stop -k -P $L -n site");
        assert_eq!(said, "site template ", "what was destroyed stays destroyed");
    });
}

/// The busybox template: every step of a container's life in seconds.
#[test]
fn a_busybox_container_lives_and_dies() {
    let lab = Lab::open("lxc-busybox", Weather::Fair);
    let script = r#"
        bridge; mkdir $L; printf 'lxc.apparmor.profile = unconfined\nlxc.net.0.type = empty\n' >$W/c
        for n in 1 2 3; do
            lxc-create -P $L -n bb -f $W/c -t busybox >/dev/null; start bb; inside bb sh -c "echo $n >/n"
            lxc-copy -P $L -n bb -N eph -e -- sleep 1 >/dev/null 2>&1 || true
            lxc-stop -k -P $L -n bb; lxc-copy -P $L -n bb -N bb2; grep -qx $n $L/bb2/rootfs/n
            lxc-destroy -P $L -n bb; lxc-destroy -P $L -n bb2; [ -z "$(lxc-ls -P $L)" ]
        done"#;
    lab.sh(&format!("{OPERATOR}{script}"));
    lab.close(|_| {});
}

/// An unprivileged container whose root filesystem belongs to root on the mount, and to the
/// container's root inside: an idmapped mount (`FUSE_ALLOW_IDMAP`).
#[test]
fn an_unprivileged_container_with_an_idmapped_root() {
    let lab = Lab::open("lxc-idmap", Weather::Fair);
    let script = r#"
        bridge; mkdir $L; printf 'lxc.apparmor.profile = unconfined\nlxc.net.0.type = empty\n' >$W/c
        lxc-create -P $L -n un -f $W/c -t busybox >/dev/null
        printf 'lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536\nlxc.rootfs.options = idmap=container\n' >>$L/un/config
        # The ids that root may give away, for this host only.
        echo root:100000:65536 >/run/subids; mount --bind /run/subids /etc/subuid; mount --bind /run/subids /etc/subgid
        chmod 755 $M/.. $M $L $L/un; start un; inside un sh -c 'id -u; echo x >/made; chown 33:44 /made; stat -c %u:%g /made'
        grep -q 100000 /proc/$(lxc-info -P $L -n un -pH)/uid_map; stat -c %u:%g $L/un/rootfs/made
        lxc-stop -k -P $L -n un; lxc-destroy -P $L -n un"#;
    let said = lab.host().try_sh(&format!("{OPERATOR}{script}"), Duration::from_secs(60));
    assert_eq!(said.expect_ok(), "0\n33:44\n33:44\n", "ids inside, inside, and on the mount");
    lab.close(|_| {});
}
