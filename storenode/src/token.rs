//! The volume's token: 64 hexadecimal digits in a file that only its owner can read. Who has it may
//! do everything with a node; without it one learns only that a node is there.

use sha2::{Digest, Sha256};
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Length of a token, hexadecimal digits.
pub const TOKEN_LEN: usize = 64;

/// The secret that a volume's mount and nodes share. Its text never appears in `Debug` output.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl std::str::FromStr for Token {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let s = s.trim();
        if s.len() != TOKEN_LEN || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("a token is {TOKEN_LEN} hexadecimal digits; this is not one"));
        }
        Ok(Self(s.to_ascii_lowercase()))
    }
}

impl Token {
    /// A token of 32 random bytes.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn random() -> std::io::Result<Self> {
        let mut raw = [0u8; TOKEN_LEN / 2];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut raw)?;
        Ok(Self(raw.iter().map(|b| format!("{b:02x}")).collect()))
    }

    /// Reads a token file, which must belong to its reader alone (mode 0600 or stricter).
    ///
    /// # Errors
    /// A message for people: what is wrong with which file, and what to do.
    pub fn load(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let file = std::fs::File::open(path).map_err(|e| {
            let hint = match e.kind() {
                std::io::ErrorKind::NotFound => "; make one with `tercet token FILE`",
                std::io::ErrorKind::PermissionDenied => {
                    "; run as the user it belongs to, or as root"
                }
                _ => "",
            };
            format!("cannot read the token file {shown}: {e}{hint}")
        })?;
        let meta = file.metadata().map_err(|e| format!("cannot look at {shown}: {e}"))?;
        if !meta.is_file() {
            return Err(format!("the token file {shown} is not a regular file"));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(format!(
                "the token file {shown} can be read or changed by others (mode {:04o}): \
                 run `chmod 600 {shown}`, and make a new token if they may have read it",
                meta.mode() & 0o7777
            ));
        }
        let mut text = String::new();
        file.take(4096)
            .read_to_string(&mut text)
            .map_err(|e| format!("cannot read the token file {shown}: {e}"))?;
        text.parse().map_err(|e| format!("{shown}: {e}"))
    }

    /// Makes a new token file, mode 0600, durable. An existing file is never touched.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the system says.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        let token = Self::random()?;
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
        writeln!(file, "{}", token.0)?;
        file.sync_all()?;
        Ok(token)
    }

    /// Is this `Authorization` header the right one? The time it takes says nothing about how much
    /// of it was right: hashes are compared, and all of them.
    #[must_use]
    pub fn allows(&self, authorization: Option<&[u8]>) -> bool {
        let Some(given) = authorization.and_then(|a| a.strip_prefix(b"Bearer ")) else {
            return false;
        };
        let (a, b) = (Sha256::digest(self.0.as_bytes()), Sha256::digest(given));
        a.iter().zip(b.iter()).fold(0u8, |differs, (x, y)| differs | (x ^ y)) == 0
    }

    /// Value of the `Authorization` header. Keep it out of logs.
    #[must_use]
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_the_right_header_is_allowed() {
        let t = Token::random().unwrap();
        assert!(t.allows(Some(t.header().as_bytes())));
        assert!(!t.allows(None));
        assert!(!t.allows(Some(b"")));
        assert!(!t.allows(Some(&t.header().as_bytes()[..40])));
        assert!(!t.allows(Some(Token::random().unwrap().header().as_bytes())));
        assert!(!format!("{t:?}").contains(&t.0));
    }

    #[test]
    fn a_file_is_made_once_and_must_be_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        assert!(Token::load(&path).unwrap_err().contains("tercet token"));
        let made = Token::create(&path).unwrap();
        assert_eq!(Token::load(&path).unwrap(), made);
        assert!(Token::create(&path).is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Token::load(&path).unwrap_err().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "short").unwrap();
        assert!(Token::load(&path).unwrap_err().contains("64 hexadecimal"));
    }
}
