//! Does the caller keep set-user-id and set-group-id bits?
//!
//! With `HANDLE_KILLPRIV_V2` the kernel leaves it to us to clear these bits when a file is written,
//! truncated or given away by someone without `CAP_FSETID`. For a write it says so in the request
//! (`FUSE_WRITE_KILL_SUIDGID`, handed over by fuser). For a truncation it says so in a bit that
//! fuser 0.18 does not hand over, and for fallocate and copy_file_range in none; there we look at
//! the caller's capabilities ourselves, and only for files that have such bits. Giving a file away
//! clears them always, but overlayfs does not give its copy of a file away when it sets mode and then
//! owner: the kernel sends the ctime of a chown(2) or truncate(2) along, and overlayfs none. File capabilities
//! (`security.capability`) are removed by the kernel itself, through removexattr, before all of these;
//! before a write to the page cache at the time of the call, not when the page comes here.
//!
//! Who asks is known by process id only: since idmapped mounts are allowed the kernel sends no user
//! id with these requests. A caller that cannot be looked at loses the bits: that is safe.

use std::path::PathBuf;

/// Set-user-id and set-group-id.
const SUID_SGID: u16 = 0o6000;
/// `CAP_FSETID`: may keep the bits.
const CAP_FSETID: u32 = 4;

/// Has this file bits that a write may have to clear?
pub(super) fn has_bits(perm: u16) -> bool {
    perm & SUID_SGID != 0
}

/// Must the bits go, when the process `pid` changes a file's content?
pub(super) fn must_kill(pid: u32) -> bool {
    let status = PathBuf::from(format!("/proc/{pid}/status"));
    std::fs::read_to_string(status).map_or(true, |text| !keeps(&text))
}

fn keeps(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|caps| caps & (1 << CAP_FSETID) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_decide() {
        assert!(keeps("Name:\tsh\nCapEff:\t000001ffffffffff\n"));
        assert!(!keeps("Name:\tsh\nCapEff:\t0000000000000000\n"));
        assert!(!keeps("CapEff:\t00000000fffffeef"));
        assert!(!keeps("garbage"));
        // A process that is not there: the safe answer.
        assert!(must_kill(0));
        assert!(has_bits(0o4755) && has_bits(0o2755) && !has_bits(0o1777));
    }
}
