//! Errors of the filesystem and the only table that turns errors of other layers into errnos.

use crate::record::RecordError;
use std::fmt;
use voter::volume::VolumeError;

/// An errno and, for the log, why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct FsError {
    /// As in `libc`.
    pub errno: i32,
    /// For the log; empty where the errno says it all (a lookup that finds nothing).
    pub why: String,
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.why.is_empty() {
            // In the system's words, with the number.
            return std::io::Error::from_raw_os_error(self.errno).fmt(f);
        }
        write!(f, "errno {}: {}", self.errno, self.why)
    }
}

impl FsError {
    /// An errno that needs no words. Allocates nothing.
    #[must_use]
    pub const fn new(errno: i32) -> Self {
        Self { errno, why: String::new() }
    }

    /// An errno and its reason.
    #[must_use]
    pub fn because(errno: i32, why: impl Into<String>) -> Self {
        Self { errno, why: why.into() }
    }

    /// Structure on the volume that cannot be (a name without its inode): EIO, and loud in the log.
    #[must_use]
    pub fn corrupt(why: impl Into<String>) -> Self {
        Self { errno: libc::EIO, why: why.into() }
    }
}

impl From<VolumeError> for FsError {
    fn from(e: VolumeError) -> Self {
        let errno = match &e {
            VolumeError::Unavailable(_) | VolumeError::Damaged(_) | VolumeError::Fenced(_) => {
                libc::EIO
            }
            VolumeError::NoSpace => libc::ENOSPC,
            VolumeError::ReadOnly => libc::EROFS,
            VolumeError::TooLarge => libc::EFBIG,
        };
        Self { errno, why: e.to_string() }
    }
}

impl From<RecordError> for FsError {
    fn from(e: RecordError) -> Self {
        Self { errno: libc::EIO, why: e.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_without_a_reason_is_told_in_the_systems_words() {
        let plain = FsError::new(libc::ENOTDIR).to_string();
        assert_eq!(plain, "Not a directory (os error 20)");
        assert_eq!(FsError::because(libc::EIO, "no banks").to_string(), "errno 5: no banks");
    }
}
