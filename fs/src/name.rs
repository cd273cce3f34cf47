//! Names of directory entries, and the hash that orders them.

use crate::errno::FsError;
use crate::limits::NAME_LEN_MAX;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// Smallest hash of a name: cookies below it belong to the start, `.` and `..`.
pub const HASH_MIN: u64 = 16;

/// Refuses what cannot be the name of an entry.
///
/// # Errors
/// `ENAMETOOLONG`, `EINVAL` (empty, `.`, `..`, with `/` or NUL).
pub fn check(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_LEN_MAX {
        return Err(FsError::new(libc::ENAMETOOLONG));
    }
    if name.is_empty() || name == b"." || name == b".." {
        return Err(FsError::new(libc::EINVAL));
    }
    if name.iter().any(|&b| b == b'/' || b == 0) {
        return Err(FsError::new(libc::EINVAL));
    }
    Ok(())
}

/// Hash of a name: 63 bits, at least [`HASH_MIN`], keyed by the volume so that nobody can make
/// names that collide. It is the order of entries in a directory and the readdir cookie; two equal
/// hashes in one directory (a chance of 10^-7 at a million entries) cost at worst one entry of a
/// listing that is cut exactly between them.
#[derive(Clone, Copy, Debug)]
pub struct NameHasher {
    key: [u8; 16],
}

impl NameHasher {
    /// With the volume's key.
    #[must_use]
    pub fn new(key: [u8; 16]) -> Self {
        Self { key }
    }

    /// Hashes a name.
    #[must_use]
    pub fn hash(&self, name: &[u8]) -> u64 {
        let mut h = SipHasher13::new_with_key(&self.key);
        h.write(name);
        (h.finish() >> 1).max(HASH_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(check(&[b'a'; 255]).is_ok());
        assert_eq!(check(&[b'a'; 256]).unwrap_err().errno, libc::ENAMETOOLONG);
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(check(bad).unwrap_err().errno, libc::EINVAL);
        }
        let (a, b) = (NameHasher::new([1; 16]), NameHasher::new([2; 16]));
        assert_ne!(a.hash(b"x"), b.hash(b"x"));
        assert!(a.hash(b"x") >> 63 == 0);
    }
}
