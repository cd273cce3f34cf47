//! What the banks hold, read from outside the mount and compared.
//!
//! The nodes answer for themselves (`storenode keys --json`): key, version, digest of each live
//! record. Three banks are equal when these sets are equal in every shard. A digest covers key,
//! version and value, so equal lists mean equal bytes as far as each index goes; that the values on
//! disk match the index is `storenode verify`'s part.

use crate::node::Node;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Version and digest of each live key of a node, as text.
pub type Holdings = BTreeMap<String, String>;

/// What a running node holds.
///
/// # Errors
/// What it said instead.
pub fn holdings(node: &Node) -> Result<Holdings, String> {
    let said = node.ask(&["keys", "--json"]);
    if !said.ok() {
        return Err(format!("{node}: {said}"));
    }
    parse_holdings(&said.stdout).map_err(|e| format!("{node}: {e}"))
}

/// Reads the output of `storenode keys --json`: one object per line, or one array.
///
/// # Errors
/// When it is something else.
pub fn parse_holdings(text: &str) -> Result<Holdings, String> {
    let mut out = Holdings::new();
    for row in rows(text)? {
        let key = row["key"].as_str().ok_or_else(|| format!("a row without key: {row}"))?;
        if is_tombstone(&row) {
            continue;
        }
        out.insert(key.to_owned(), format!("{} {}", row["version"], row["digest"]));
    }
    Ok(out)
}

fn is_tombstone(row: &Value) -> bool {
    row["len"].is_null() && row["bytes"].is_null() || row["state"] == "tombstone"
}

/// The objects of a JSON array, or of JSON lines.
///
/// # Errors
/// When it is neither.
pub fn rows(text: &str) -> Result<Vec<Value>, String> {
    serde_json::Deserializer::from_str(text)
        .into_iter::<Value>()
        .map(|v| match v {
            Ok(Value::Array(rows)) => Ok(rows),
            Ok(row) => Ok(vec![row]),
            Err(e) => Err(format!("not JSON: {e}")),
        })
        .collect::<Result<Vec<_>, _>>()
        .map(|v| v.into_iter().flatten().collect())
}

/// The differences between the banks, shard by shard, a line each.
#[must_use]
pub fn compare(nodes: &[Vec<Node>; 3]) -> Vec<String> {
    let mut out = Vec::new();
    let [bank_a, bank_b, bank_c] = nodes;
    for (shard, ((a, b), c)) in bank_a.iter().zip(bank_b).zip(bank_c).enumerate() {
        let held = [a, b, c].map(holdings);
        match held {
            [Ok(a), Ok(b), Ok(c)] => out.extend(
                differences([&a, &b, &c]).into_iter().map(|d| format!("shard {shard}: {d}")),
            ),
            held => out.extend(held.into_iter().filter_map(Result::err)),
        }
    }
    out
}

/// Nodes that hold parts they have not applied yet, a line each. The mount's beat tells an idle node
/// within a second that they are committed.
#[must_use]
pub fn pending(nodes: &[Vec<Node>; 3]) -> Vec<String> {
    let standing = |node: &Node| {
        let said = node.ask(&["status", "--json"]);
        let status = rows(&said.stdout).ok().and_then(|r| r.into_iter().next());
        let Some(status) = status.filter(|_| said.ok()) else {
            return Some(format!("{node}: {said}"));
        };
        let position = &status["position"];
        (position["position"] != position["applied"]).then(|| {
            format!("{node}: applied {}, holds {}", position["applied"], position["position"])
        })
    };
    nodes.iter().flatten().filter_map(standing).collect()
}

fn differences(held: [&Holdings; 3]) -> Vec<String> {
    let keys: BTreeSet<&String> = held.iter().flat_map(|h| h.keys()).collect();
    keys.into_iter()
        .filter_map(|key| {
            let [a, b, c] = held.map(|h| h.get(key).map_or("absent", String::as_str));
            (a != b || b != c).then(|| format!("{key}: A {a}, B {b}, C {c}"))
        })
        .collect()
}

/// Does `tercet status --json` say that every replica is up to date?
#[must_use]
pub fn is_healthy(status: &Value) -> bool {
    status["healthy"] == true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_sees_a_stale_a_missing_and_a_foreign_record() {
        let row =
            |k: &str, v: &str| format!(r#"{{"key":"{k}","version":"{v}","digest":"d","len":1}}"#);
        let a = parse_holdings(&[row("k", "e1.2"), row("m", "e1.1")].join("\n")).unwrap();
        let b = parse_holdings(&row("k", "e1.1")).unwrap();
        let c = parse_holdings(&format!("[{},{}]", row("k", "e1.2"), row("z", "e9.9"))).unwrap();
        let found = differences([&a, &b, &c]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(differences([&a, &a, &a]).is_empty());
        assert!(parse_holdings("no json").is_err());
    }
}
