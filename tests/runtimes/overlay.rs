//! The layers of a whole Debian root filesystem on the mount, against the same on the machine's own
//! filesystem. (The small version is `tests/e2e/everyday.rs`.)

use crate::in_all_weathers;
use crate::lab::{Lab, Weather};
use crate::roots::debian;
use cluster::tree::Manifest;

in_all_weathers!(an_upgrade_over_a_debian_root, upgrade);

/// What a package upgrade and an administrator do to the merged tree.
const STEPS: [&str; 3] = [
    "rm -r usr/share/doc usr/share/man; mkdir usr/share/doc; echo new >usr/share/doc/readme
     cp -a usr/lib/os-release usr/lib/os-release.new; echo X=1 >>usr/lib/os-release.new; mv usr/lib/os-release.new usr/lib/os-release",
    "mv usr/share/locale usr/share/lang; chown -R 33:33 var/www; chmod u+s usr/bin/env; touch -d 2001-01-01 usr/bin/passwd
     find usr/lib/systemd -type f -name '*.service' -exec sed -i 's/^Description/#&/' {} +",
    "cp -a etc etc.bak; rm -r etc; mv etc.bak etc; ln usr/bin/env usr/bin/env2; setfacl -m u:5:r etc/passwd
     tar -C usr/lib -cf - python3 systemd 2>/dev/null | tar -C var -xpf - || true; truncate -s 100 usr/bin/perl; rm -rf usr/share/perl5",
];

fn upgrade(weather: Weather) {
    let root = debian();
    let mut lab = Lab::open("overlay", weather);
    let overlay = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged";
    for at in ["$W/plain", "$M/layers"] {
        lab.sh(&format!(
            "mkdir -p {at}; cd {at}; mkdir lower upper work merged; tar -C lower --numeric-owner --xattrs --xattrs-include='*' -xpf {}
             {overlay} || {{ echo 'this machine cannot mount overlayfs with its layers in {at}' >&2; exit 1; }}", root.display()));
    }
    for step in STEPS {
        lab.sh(&format!("cd $W/plain/merged; {step}"));
        lab.turn();
        lab.sh(&format!("cd $M/layers/merged; {step}"));
    }
    // Times of what the steps made differ between the two; everything else may not.
    let settle = "find . -newermt '-1 day' -exec touch -h -d 2020-01-01 {} +";
    lab.sh(&format!("for at in $W/plain $M/layers; do cd $at/merged; {settle}; rsync -aHAXS --modify-window=-1 --numeric-ids ./ ../flat/; done"));
    let copied = |path: std::path::PathBuf| Manifest::copied(&path).expect("walk");
    let want = copied(lab.outside("plain/flat"));
    want.assert_same(
        &copied(lab.cluster.path("layers/flat")),
        "merged, as on the machine's own disk",
    );
    lab.turn();
    lab.sh("umount $M/layers/merged $W/plain/merged");
    lab.close(|lab| {
        lab.sh(&format!("cd $M/layers; {overlay}; rsync -aHAXS --modify-window=-1 --numeric-ids merged/ again/; umount merged"));
        want.assert_same(&copied(lab.cluster.path("layers/again")), "on the banks that were mended");
    });
}
