//! The dashboard in a real browser: each page and each action, with and without JavaScript.
//!
//! Needs Debian's packages chromium and chromium-driver, which `ci/setup test` installs. With the variable
//! `PQ_WEB_SCREENSHOTS` the pages are also drawn, light and dark, into that directory.

mod actions;
mod features;
mod harness;
#[path = "../../../pq-diesel/tests/common/migrated.rs"]
mod migrated;
mod pages;
mod workflows;
