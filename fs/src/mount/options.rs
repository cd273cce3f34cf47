//! Options of mount(8): what `-o` and fstab may say, and what becomes of a mount whose options are
//! changed while it is there (`remount`).

use crate::control::ControlError;
use crate::filesystem::Atime;
use rustix::mount::MountFlags as Kernel;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// Options that the kernel keeps for a mount, and when files are marked as read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFlags {
    /// `ro`: the kernel refuses every change (`EROFS`). The volume is held as for any other mount.
    pub read_only: bool,
    /// `nodev`
    pub nodev: bool,
    /// `nosuid`
    pub nosuid: bool,
    /// `noexec`
    pub noexec: bool,
    /// `sync`: every write is followed by an fsync.
    pub sync: bool,
    /// `noatime`, `relatime` (as without any), `strictatime`
    pub atime: Atime,
    /// Other users may enter; `None` = root lets them, others do not.
    pub allow_other: Option<bool>,
}

impl MountFlags {
    /// When files are marked as read: a mount that is read-only writes nothing.
    #[must_use]
    pub fn marks(&self) -> Atime {
        if self.read_only { Atime::Never } else { self.atime }
    }
}

/// What a list of options asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Flags, those that were not mentioned as they were.
    pub flags: MountFlags,
    /// Take the volume from another mount that holds it.
    pub takeover: bool,
    /// Read beside the mount that holds the volume.
    pub observer: bool,
    /// Change a mount that is there.
    pub remount: bool,
}

/// Options that mean nothing to a mount, or nothing here, and are no mistakes.
const IGNORED: [&str; 16] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "diratime",
    "fakefs",
    "loud",
    "silent",
    "default_permissions",
    "nolazytime",
];
/// Those with a value: what mount(8) adds to a remount from what it sees in /proc/self/mountinfo.
const IGNORED_VALUES: [&str; 8] =
    ["x-", "X-", "comment=", "user_id=", "group_id=", "max_read=", "blksize=", "subtype="];

impl Wish {
    /// Understands one option after the other; the last one counts.
    ///
    /// # Errors
    /// An option that is not known, or not possible.
    pub fn apply(&mut self, options: &[String]) -> Result<(), ControlError> {
        let flags = &mut self.flags;
        for option in options.iter().map(String::as_str).filter(|o| !o.is_empty()) {
            match option {
                "ro" => flags.read_only = true,
                "rw" => flags.read_only = false,
                "nodev" => flags.nodev = true,
                "dev" => flags.nodev = false,
                "nosuid" => flags.nosuid = true,
                "suid" => flags.nosuid = false,
                "noexec" => flags.noexec = true,
                "exec" => flags.noexec = false,
                "sync" => flags.sync = true,
                "async" => flags.sync = false,
                "noatime" => flags.atime = Atime::Never,
                "relatime" | "atime" | "nostrictatime" => flags.atime = Atime::Relative,
                "strictatime" | "norelatime" => flags.atime = Atime::Strict,
                "allow_other" => flags.allow_other = Some(true),
                "noallow_other" => flags.allow_other = Some(false),
                "takeover" => self.takeover = true,
                "observer" => self.observer = true,
                "remount" => self.remount = true,
                "bind" | "rbind" | "move" | "dirsync" | "lazytime" | "mand" | "nodiratime" => {
                    let what = format!("mount option {option} is not possible here");
                    return Err(ControlError::new(2, what, "leave the option out"));
                }
                _ if IGNORED.contains(&option)
                    || IGNORED_VALUES.iter().any(|start| option.starts_with(start)) => {}
                _ => {
                    let hint = "`tercet mount --help` lists them";
                    let what = format!("unknown mount option {option}");
                    return Err(ControlError::new(2, what, hint));
                }
            }
        }
        if self.observer && self.takeover {
            let hint = "take the volume over to write, or observe to read beside its holder";
            return Err(ControlError::new(2, "observer and takeover exclude each other", hint));
        }
        // Whatever else was said: it cannot write.
        flags.read_only |= self.observer;
        Ok(())
    }
}

/// Gives what is mounted at `place` new flags; before it becomes read-only the kernel writes back what
/// is dirty. Never call it where a request waits for the caller.
///
/// # Errors
/// `EBUSY` while files are open for writing and it shall become read-only; `EPERM` without root.
pub fn remount(place: &Path, flags: &MountFlags) -> io::Result<()> {
    let mut kernel = match flags.atime {
        Atime::Never => Kernel::NOATIME,
        Atime::Relative => Kernel::RELATIME,
        Atime::Strict => Kernel::STRICTATIME,
    };
    for (on, flag) in [
        (flags.read_only, Kernel::RDONLY),
        (flags.nodev, Kernel::NODEV),
        (flags.nosuid, Kernel::NOSUID),
        (flags.noexec, Kernel::NOEXEC),
        (flags.sync, Kernel::SYNCHRONOUS),
    ] {
        kernel.set(flag, on);
    }
    rustix::mount::mount_remount(place, kernel, c"").map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(from: Wish, text: &str) -> Result<Wish, ControlError> {
        let mut wish = from;
        wish.apply(&text.split(',').map(str::to_owned).collect::<Vec<_>>())?;
        Ok(wish)
    }

    #[test]
    fn the_last_word_counts() {
        let w = wish(Wish::default(), "rw,_netdev,x-systemd.after=a,nodev,allow_other").unwrap();
        assert!(w.flags.nodev && !w.flags.nosuid && !w.flags.read_only && !w.remount);
        assert_eq!(w.flags.allow_other, Some(true));
        let w = wish(w, "noatime,dev,ro,takeover").unwrap();
        assert!(!w.flags.nodev && w.flags.read_only && w.takeover);
        assert_eq!(w.flags.atime, Atime::Never);
        assert_eq!(wish(w, "relatime").unwrap().flags.atime, Atime::Relative);
    }

    #[test]
    fn a_remount_as_mount_8_asks_for_it() {
        let text = "rw,nosuid,relatime,user_id=0,group_id=0,default_permissions,allow_other,\
                    remount,ro,strictatime";
        let w = wish(Wish::default(), text).unwrap();
        assert!(w.remount && w.flags.read_only && w.flags.nosuid);
        assert_eq!(w.flags.atime, Atime::Strict);
    }

    #[test]
    fn what_is_not_possible_or_not_known_is_refused() {
        for option in ["bind", "dirsync", "frobnicate", "user_idx"] {
            let refused = wish(Wish::default(), option).unwrap_err();
            assert!(refused.message.contains(option), "{refused:?}");
        }
    }
}
