//! Who asks: what /proc says of a process.
//!
//! A request names its process, and since idmapped mounts are allowed not always a user. What the
//! kernel leaves to us to decide (see `privileges.rs`) needs groups and capabilities anyway. It is
//! asked for rarely, and a process that cannot be looked at has no rights: that is the safe answer.

use std::path::PathBuf;

/// `CAP_FOWNER`: as good as the owner.
const CAP_FOWNER: u64 = 1 << 3;
/// `CAP_FSETID`: keeps set-user-id and set-group-id bits.
const CAP_FSETID: u64 = 1 << 4;
/// `CAP_SYS_ADMIN`: sees `trusted.` attributes.
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// A process, by its id.
pub(super) struct Asker {
    dir: PathBuf,
    status: Status,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    fsuid: Option<u32>,
    /// Supplementary ones and the fsgid.
    groups: Vec<u32>,
    capabilities: u64,
}

impl Asker {
    pub(super) fn of(pid: u32) -> Self {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let text = std::fs::read_to_string(dir.join("status"));
        Self { dir, status: text.map(|t| parse(&t)).unwrap_or_default() }
    }

    /// Is it the owner of what `uid` owns, or as good as that?
    pub(super) fn owns(&self, uid: u32, gid: u32) -> bool {
        self.status.fsuid == Some(uid) || self.can(CAP_FOWNER, uid, gid)
    }

    pub(super) fn is_in_group(&self, gid: u32) -> bool {
        self.status.groups.contains(&gid)
    }

    /// May it keep set-user-id and set-group-id bits of a file that belongs to them?
    pub(super) fn keeps_bits(&self, uid: u32, gid: u32) -> bool {
        self.can(CAP_FSETID, uid, gid)
    }

    /// Does it see `trusted.` attributes? Root of a container with users of its own does not.
    pub(super) fn sees_trusted(&self) -> bool {
        let users = |dir: PathBuf| std::fs::read_link(dir.join("ns/user")).ok();
        let ours = users("/proc/self".into());
        self.status.capabilities & CAP_SYS_ADMIN != 0
            && ours.is_some()
            && users(self.dir.clone()) == ours
    }

    /// A capability counts where the file's owner and group exist for the process.
    fn can(&self, capability: u64, uid: u32, gid: u32) -> bool {
        let knows = |map: &str, id| {
            std::fs::read_to_string(self.dir.join(map)).is_ok_and(|text| is_mapped(&text, id))
        };
        self.status.capabilities & capability != 0 && knows("uid_map", uid) && knows("gid_map", gid)
    }
}

fn parse(status: &str) -> Status {
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
    let numbers = |text: &str| -> Vec<u32> {
        text.split_whitespace().filter_map(|n| n.parse().ok()).collect()
    };
    // Real, effective, saved, of the filesystem.
    let (uids, gids) = (numbers(field("Uid:")), numbers(field("Gid:")));
    let mut groups = numbers(field("Groups:"));
    groups.extend(gids.get(3));
    let capabilities = u64::from_str_radix(field("CapEff:").trim(), 16).unwrap_or_default();
    Status { fsuid: uids.get(3).copied(), groups, capabilities }
}

/// Is an id of ours within a `uid_map` or `gid_map` (inside, outside, count)?
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1).filter_map(|w| w.parse::<u64>().ok());
        let (Some(from), Some(count)) = (words.next(), words.next()) else { return false };
        (from..from.saturating_add(count)).contains(&id.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read() {
        let text = "Name:\tsh\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t20 30 \n\
                    CapEff:\t0000000000000010\n";
        let want = Status { fsuid: Some(4), groups: vec![20, 30, 8], capabilities: CAP_FSETID };
        assert_eq!(parse(text), want);
        assert_eq!(parse("garbage\nCapEff: x"), Status::default());
    }

    #[test]
    fn a_process_that_is_not_there_has_no_rights() {
        let nobody = Asker::of(0);
        assert!(!nobody.owns(0, 0) && !nobody.is_in_group(0));
        assert!(!nobody.keeps_bits(0, 0) && !nobody.sees_trusted());
    }

    #[test]
    fn capabilities_reach_as_far_as_the_map_of_users() {
        let everybody = "         0          0 4294967295\n";
        let container = "         0     100000      65536\n";
        assert!(is_mapped(everybody, 0) && is_mapped(everybody, 4_000_000_000));
        assert!(is_mapped(container, 100_000) && is_mapped(container, 165_535));
        assert!(!is_mapped(container, 0) && !is_mapped(container, 165_536));
        assert!(!is_mapped("", 0));
    }
}
