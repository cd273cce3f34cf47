//! Container runtimes, databases, web servers, disk images and build tools, as Debian packages them,
//! with their data on the mount. What is asked of them is `acceptance` S1 to S3 (docs/containers.md
//! says which test covers what).
//!
//! Run with `scripts/test runtimes [FILTER]`, as root; it installs the packages of `packages`. Every
//! scenario runs three times: undisturbed, with bank after bank killed and brought back, and with bank
//! after bank emptied and refilled; LXC also with banks that hang. Beside it a saver of small files runs
//! all the time: no error, no stall, no short listing.

use std::time::Duration;

mod databases;
mod docker;
mod images;
mod lab;
mod lxc;
mod overlay;
mod podman;
mod roots;
mod trees;
mod web;

/// The promise is that no operation waits for 1 s because of one bank. On a shared two-core machine,
/// where container runtimes compete with nine storage nodes for one disk, this much slack keeps a busy
/// neighbour from failing the test; what was measured is printed.
const STALL_MAX: Duration = Duration::from_secs(5);

/// How long repair may take once nothing is in its way.
const REPAIR_MAX: Duration = Duration::from_secs(240);

/// Three tests of one scenario: `NAME::undisturbed`, `NAME::banks_die`, `NAME::banks_are_refilled`.
macro_rules! in_all_weathers {
    ($name:ident, $scenario:ident) => {
        mod $name {
            use crate::lab::Weather;

            #[test]
            fn undisturbed() {
                super::$scenario(Weather::Fair);
            }

            #[test]
            fn banks_die() {
                super::$scenario(Weather::BanksDie);
            }

            #[test]
            fn banks_are_refilled() {
                super::$scenario(Weather::BanksAreRefilled);
            }
        }
    };
}
pub(crate) use in_all_weathers;
