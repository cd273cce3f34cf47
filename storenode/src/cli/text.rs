//! Bytes, versions and sizes as people write and read them.

use super::Bytes;
use storenode::wire::{KEY_LEN_MAX, Version};

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Printable ASCII; a dot for the rest.
pub(super) fn printable(bytes: &[u8]) -> String {
    bytes.iter().map(|b| if (0x20..0x7f).contains(b) { *b as char } else { '.' }).collect()
}

/// 16 bytes a line: offset, hexadecimal, printable.
pub(super) fn dump(bytes: &[u8]) -> String {
    let line = |(i, row): (usize, &[u8])| {
        let cells: String = row.iter().map(|b| format!("{b:02x} ")).collect();
        format!("  {:08x}  {cells:<48} {}\n", i * 16, printable(row))
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

/// A size for people, and exactly: `1.5 MiB (1572864 bytes)`.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["bytes", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 || unit == "TiB" {
            return match unit {
                "bytes" => format!("{bytes} bytes"),
                _ => format!("{value:.1} {unit} ({bytes} bytes)"),
            };
        }
        value /= 1024.0;
    }
    unreachable!("the last unit takes everything")
}

fn bytes(s: &str) -> Result<Vec<u8>, String> {
    if let Some(text) = s.strip_prefix("text:") {
        return Ok(text.as_bytes().to_vec());
    }
    let digits = s.strip_prefix("0x").unwrap_or(s);
    if !digits.len().is_multiple_of(2) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("not an even number of hexadecimal digits (write text:... for text)".into());
    }
    let byte = |i| u8::from_str_radix(&digits[i..i + 2], 16).map_err(|e| e.to_string());
    (0..digits.len()).step_by(2).map(byte).collect()
}

pub(super) fn parse_key(s: &str) -> Result<Bytes, String> {
    match bytes(s)? {
        key if key.is_empty() || key.len() > KEY_LEN_MAX => {
            Err(format!("a key is 1 to {KEY_LEN_MAX} bytes long"))
        }
        key => Ok(Bytes(key)),
    }
}

pub(super) fn parse_prefix(s: &str) -> Result<Bytes, String> {
    bytes(s).map(Bytes)
}

pub(super) fn parse_value(s: &str) -> Result<Bytes, String> {
    match s.strip_prefix("hex:") {
        Some(digits) => bytes(digits).map(Bytes),
        None => Ok(Bytes(s.as_bytes().to_vec())),
    }
}

pub(super) fn parse_on_off(s: &str) -> Result<bool, String> {
    match s {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("say on or off".into()),
    }
}

/// `e3.17`.
pub(super) fn parse_version(s: &str) -> Result<Version, String> {
    let parse = || {
        let (epoch, seq) = s.strip_prefix('e')?.split_once('.')?;
        Some(Version::new(epoch.parse().ok()?, seq.parse().ok()?))
    };
    parse().ok_or_else(|| format!("{s:?} is not a version such as e3.17"))
}

/// A number of bytes, with K, M, G or T (1024 each) behind it if you like.
pub(super) fn parse_size(s: &str) -> Result<u64, String> {
    let s = s.trim();
    let digits = s.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match s[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(format!("{s:?} is not a size such as 500000, 64M or 10GiB")),
    };
    let n: u64 = digits.parse().map_err(|_| format!("{s:?} is not a size such as 64M"))?;
    n.checked_mul(1 << shift).ok_or_else(|| format!("{s} is too large"))
}

/// The first key behind all that begin with `prefix`; empty when there is none.
pub(super) fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let keep = prefix.iter().rposition(|b| *b != 0xff).map_or(0, |i| i + 1);
    let mut end = prefix[..keep].to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_versions_and_prefixes() {
        for (text, n) in [("0", 0), ("12", 12), ("4k", 4096), ("2 MiB", 2 << 20), ("1T", 1 << 40)] {
            assert_eq!(parse_size(text), Ok(n), "{text}");
        }
        for bad in ["", "k", "-1", "1.5G", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(3 << 19), "1.5 MiB (1572864 bytes)");
        assert_eq!(parse_version("e3.17"), Ok(Version::new(3, 17)));
        assert!(parse_version("3.17").is_err());
        assert_eq!(end_of_prefix(&[1, 2]), [1, 3]);
        assert_eq!(end_of_prefix(&[1, 0xff]), [2]);
        assert_eq!(end_of_prefix(&[0xff]), [0u8; 0]);
        assert_eq!(end_of_prefix(&[]), [0u8; 0]);
        assert_eq!(bytes("0x00fF").unwrap(), [0, 255]);
        assert_eq!(dump(b"hello").trim(), format!("00000000  {:<48} hello", "68 65 6c 6c 6f "));
    }
}
