//! What the answers of handlers have in common.

use super::convert::file_attr;
use crate::filesystem::Attr;
use fuser::{Errno, Generation, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr};
use std::time::Duration;

/// Sends an entry, or the error.
pub(super) fn entry(reply: ReplyEntry, ttl: Duration) -> impl FnOnce(Result<Attr, Errno>) {
    move |result| match result {
        Ok(attr) => reply.entry(&ttl, &file_attr(&attr), Generation(attr.generation)),
        Err(e) => reply.error(e),
    }
}

/// Sends attributes, or the error.
pub(super) fn attr(reply: ReplyAttr, ttl: Duration) -> impl FnOnce(Result<Attr, Errno>) {
    move |result| match result {
        Ok(attr) => reply.attr(&ttl, &file_attr(&attr)),
        Err(e) => reply.error(e),
    }
}

/// Sends "done", or the error.
pub(super) fn empty(reply: ReplyEmpty) -> impl FnOnce(Result<(), Errno>) {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

/// Sends the value of an extended attribute by the rules of getxattr(2): its length if `size` is
/// 0, `ERANGE` if it does not fit.
pub(super) fn sized<T: AsRef<[u8]>>(reply: ReplyXattr, size: u32) -> impl FnOnce(Result<T, Errno>) {
    move |result| match result {
        Ok(value) => {
            let value = value.as_ref();
            let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
            match size {
                0 => reply.size(len),
                _ if len > size => reply.error(Errno::ERANGE),
                _ => reply.data(value),
            }
        }
        Err(e) => reply.error(e),
    }
}
