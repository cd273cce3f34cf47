//! S3: disk images, with qemu-img, loop devices and copies.

use crate::REPAIR_MAX;
use crate::in_all_weathers;
use crate::lab::{Lab, Weather};
use cluster::{Bank, Random, until};
use std::fmt::Write;
use std::time::Duration;

in_all_weathers!(images_are_made_cloned_and_changed, images);

fn images(weather: Weather) {
    let mut lab = Lab::open("images", weather);
    let mut random = Random::from_env("images");
    // Upload in 4 MiB appends, reopened each time, watched by others: the size only grows, and the
    // version file is never there before its data.
    lab.sh(
        r#"head -c 96M /dev/urandom >$W/upload; mkdir $M/up
           watch() { last=0; while [ ! -e $M/up/version ]; do s=$(stat -c %s $M/up/image 2>/dev/null || echo 0)
               [ $s -ge $last ] || { echo "$last $s" >>$W/shrunk; }; last=$s; sleep 0.1; done; cmp $M/up/image $W/upload || echo late >>$W/shrunk; touch $W/watched; }
           watch & for n in $(seq 0 23); do dd if=$W/upload bs=4M skip=$n count=1 status=none >>$M/up/image; done
           sync $M/up/image; echo 1 >$M/up/version.new; mv $M/up/version.new $M/up/version; wait; [ -e $W/watched ]; [ ! -e $W/shrunk ]"#,
    );
    lab.turn();
    // rsync that is cut off and goes on; a copy of the copy; replaced under an open reader.
    lab.sh(
        r#"timeout -s KILL 0.3 rsync --bwlimit=60m --partial --inplace $W/upload $M/up/two || true
           rsync -P --inplace --append-verify $W/upload $M/up/two >/dev/null; cmp $W/upload $M/up/two; cp $M/up/two $M/up/three
           exec 5<$M/up/three; echo replaced >$M/up/new; mv $M/up/new $M/up/three
           cmp $W/upload /dev/fd/5; [ $(cat $M/up/three) = replaced ]; exec 5<&-"#,
    );
    // Formats, an overlay over one base, and commit: the same commands on the machine's own disk.
    let mut io = String::new();
    for _ in 0..300 {
        // Random 512 B to 16 KiB, each flushed now and then.
        let (at, len) = (random.below(200 << 11) * 512, (1 + random.below(32)) * 512);
        let _ = match random.below(8) {
            0 => writeln!(io, "write -z {at} {len}"),
            1 => writeln!(io, "discard {at} {len}"),
            2 => writeln!(io, "flush"),
            _ => writeln!(io, "write -P {} {at} {len}", random.below(255) + 1),
        };
    }
    std::fs::write(lab.outside("io"), io).expect("write");
    for at in ["$W/q", "$M/q"] {
        lab.sh(&format!(
            r#"mkdir {at}; cd {at}; truncate -s 256M raw; E2FSPROGS_FAKE_TIME=1600000000 mkfs.ext4 -q -F -E hash_seed=0c5a1d2e-0000-4000-8000-000000000001 -U 0c5a1d2e-0000-4000-8000-000000000000 raw
               qemu-img convert -q -f raw -O qcow2 raw base.qcow2; qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
               qemu-img create -q -f qcow2 -o preallocation=falloc pre.qcow2 64M; qemu-img check -q pre.qcow2"#
        ));
        for cache in ["none", "writeback", "directsync"] {
            lab.sh(&format!("cd {at}; qemu-io -f qcow2 -t {cache} top.qcow2 <$W/io >/dev/null; qemu-img check -q top.qcow2"));
            if at == "$M/q" {
                lab.turn();
            }
        }
        lab.sh(&format!(
            "cd {at}; qemu-img snapshot -c s top.qcow2; qemu-img convert -q -O raw -t none -T none top.qcow2 flat.raw; qemu-img snapshot -d s top.qcow2
             qemu-img commit -q top.qcow2; qemu-img check -q base.qcow2; qemu-img compare -q base.qcow2 flat.raw"
        ));
    }
    lab.sh("qemu-img compare -q -f raw -F raw $W/q/flat.raw $M/q/flat.raw; cmp $W/q/flat.raw $M/q/flat.raw");
    // Clones and holes.
    lab.turn();
    lab.sh(
        r#"cd $M/q; cp -a flat.raw a; cp --sparse=always flat.raw b; cmp a b; truncate -s 2G b; dd if=/dev/urandom of=b bs=4k count=1 seek=400000 conv=notrunc status=none
           [ $(stat -c %s b) = 2147483648 ]; [ $(du -k b | cut -f1) -lt 40000 ]; cmp -n 268435456 a b
           dd if=/dev/zero of=zeros bs=1M count=200 status=none; sync zeros; [ $(du -k zeros | cut -f1) -lt 100 ]"#,
    );
    // A filesystem in a file, mounted by loop, enlarged.
    lab.sh(
        r#"mkdir /run/loop; cd $M/q; truncate -s 256M fs.raw; mkfs.ext4 -q -F fs.raw; mount -o loop fs.raw /run/loop
           cp -a /etc /usr/share/perl5 /run/loop/; find /run/loop -type f -print0 | sort -z | xargs -0 sha256sum >$W/loop.sums
           umount /run/loop; e2fsck -fn fs.raw >/dev/null; truncate -s 512M fs.raw; resize2fs fs.raw >/dev/null 2>&1; e2fsck -fn fs.raw >/dev/null
           mount -o loop fs.raw /run/loop; sha256sum --quiet -c $W/loop.sums; umount /run/loop"#,
    );
    lab.turn();
    lab.close(|lab| {
        lab.sh("cmp $W/upload $M/up/image; cmp $W/upload $M/up/two; qemu-img check -q $M/q/base.qcow2; qemu-img compare -q $M/q/base.qcow2 $W/q/base.qcow2
            e2fsck -fn $M/q/fs.raw >/dev/null; mkdir -p /run/loop; mount -o loop,ro $M/q/fs.raw /run/loop; sha256sum --quiet -c $W/loop.sums; umount /run/loop");
    });
}

/// A guest's disk at a power cut: the ext4 inside an image was told "synced"; the mount is killed
/// under it, with a bank, again and again; what the guest had synced is there, and its check is clean.
#[test]
fn a_filesystem_in_an_image_survives_kills() {
    let mut lab = Lab::open("powercut", Weather::Fair);
    let mut random = Random::from_env("powercut");
    lab.sh("truncate -s 3G $M/disk; mkfs.ext4 -q -F -E lazy_itable_init=1 $M/disk; sync $M/disk");
    let noted = lab.outside("noted");
    let count = || std::fs::read_to_string(&noted).unwrap_or_default().lines().count();
    for round in 0..6 {
        let guest = lab.host().spawn(
            "guest",
            &format!(
                r#"mkdir -p /run/guest; mount -o loop $M/disk /run/guest; cd /run/guest; mkdir -p d; touch busy; truncate -s 2G busy
                   (while :; do dd if=/dev/urandom of=busy bs=$((512 * (1 + RANDOM % 32))) count=1 seek=$((RANDOM % 1000 * 64)) conv=notrunc,fdatasync status=none; done) &
                   for n in $(seq 100000); do echo "{round} $n" >d/{round}-$n; sync d/{round}-$n d; echo "{round}-$n" >>$W/noted; done"#
            ),
        );
        let before = count();
        until(REPAIR_MAX, "the guest syncs", || count() > before + 30);
        std::thread::sleep(Duration::from_millis(random.below(500)));
        let bank = Bank::ALL[usize::try_from(random.below(3)).unwrap_or(0)];
        if round % 2 == 1 {
            lab.cluster.kill(bank);
        }
        lab.crash_host();
        drop(guest);
        if round % 2 == 1 {
            lab.cluster.start_bank(bank);
        }
        lab.sh(
            r#"mkdir -p /run/guest; mount -o loop $M/disk /run/guest; umount /run/guest; e2fsck -fn $M/disk >$W/e2fsck || { cat $W/e2fsck; exit 1; }
               mount -o loop $M/disk /run/guest; while read -r n; do [ "$(cat /run/guest/d/$n)" = "${n%-*} ${n#*-}" ] || echo "lost $n" >>$W/lost; done <$W/noted
               umount /run/guest; [ ! -e $W/lost ]"#,
        );
        println!("round {round}: {} syncs of the guest, all there", count());
    }
    lab.close(|lab| lab.sh("e2fsck -fn $M/disk >/dev/null"));
}

/// One image, read by eight at once, cold and warm, with a bank dead: equal hashes, bounded memory.
#[test]
fn many_readers_of_one_image() {
    let mut lab = Lab::open("readers", Weather::Fair);
    lab.sh("head -c 512M /dev/urandom >$W/image; sha256sum <$W/image >$W/sum; cp $W/image $M/image; sync $M/image");
    lab.remount();
    lab.cluster.kill(Bank::C);
    for _cold_then_warm in 0..2 {
        lab.sh("for n in 1 2 3 4 5 6 7 8; do sha256sum <$M/image >$W/sum$n & done; wait; for n in 1 2 3 4 5 6 7 8; do cmp $W/sum $W/sum$n; done");
    }
    let pid = lab.cluster.mounted().pid().expect("mounted");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("/proc");
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("VmHWM");
    let kilobytes: u64 = peak.trim().trim_end_matches(" kB").trim().parse().expect("kB");
    println!("the mount's memory, at its peak: {} MiB", kilobytes >> 10);
    assert!(kilobytes < 1 << 20, "the mount took {kilobytes} KiB");
    lab.cluster.start_bank(Bank::C);
    lab.close(|lab| lab.sh("sha256sum <$M/image | cmp - $W/sum"));
}
