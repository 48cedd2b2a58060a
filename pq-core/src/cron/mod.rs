//! Cron entries: jobs that are put at each tick of a cron expression.
//!
//! The records are always there, because every store keeps them. The feature `cron` adds the parser of expressions,
//! the methods that set entries (`queue/cron.rs`), and the firing of ticks.

#[cfg(feature = "cron")]
mod entry;
#[cfg(feature = "cron")]
mod expression;
#[cfg(feature = "cron")]
mod fire;
#[cfg(feature = "cron")]
mod ticks;

use chrono::{DateTime, Utc};

#[cfg(feature = "cron")]
pub(crate) use self::fire::bring_crons_forward;
#[cfg(feature = "cron")]
pub use self::fire::fire_due_crons;
use crate::{Payload, QueueName};

/// A job that is put at each tick of a cron expression, once per tick.
///
/// Workers and [`Pq::maintain`](crate::Pq::maintain) fire the ticks that are due, whichever queues they serve. The
/// put of the job and the record that the tick was fired commit together, so no tick fires twice. The tick is the
/// `expected_at` of its job. A tick that no process fires within a minute is missed. Missed ticks put no job, or
/// one job for all of them if [`Cron::catch_up`] is set.
///
/// Each entry fires in a transaction of its own. If its job cannot be put, because the database refuses it or this
/// program cannot read the expression, the error is stored ([`CronEntry::error`]) and logged, other entries are not
/// affected, and the entry is tried again after a pause that grows from 1 s to 30 s.
///
/// The expression has five fields (minute, hour, day of the month, month, day of the week), or six with seconds
/// first, or is a nickname: `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`, `@midnight`, `@hourly` or
/// `@minutely`. A step must be smaller than the number of values of its field, so `*/90` is no valid minute.
///
/// The expression is read in a time zone of the IANA database. An hour and a minute that are numbers, lists or ranges
/// name fixed times of day, each of which fires once per date. When clocks go forward, times that do not exist fire at
/// the first instant after the gap, together as one tick. When clocks go back, a time that exists twice fires at the
/// first of its two instants. An expression whose hour or minute is `*` or `*/n` follows real time instead: it fires
/// at each instant whose local time matches, twice in a repeated hour and not at all in a gap.
///
/// Entries can be set and fired only with the feature `cron`, which is on by default.
///
#[cfg_attr(
    feature = "cron",
    doc = r#"
```
use pq_core::{Pq, memory::MemoryStore};
# fn main() -> Result<(), Box<dyn std::error::Error>> {
let pq = Pq::new(MemoryStore::new());
let bills = pq.queue::<String>("bills")?;
let monthly = bills.cron("bill-everybody", "0 6 1 * *", &"all".to_owned())?.time_zone("Europe/Berlin")?;
pq.set_cron(&monthly)?;
assert_eq!(pq.crons()?.len(), 1);
# Ok(())
# }
```
"#
)]
#[derive(Clone, Debug)]
#[must_use]
pub struct Cron {
    /// The name. Setting an entry replaces the one of the same name.
    pub name: String,
    /// The cron expression.
    pub expression: String,
    /// The time zone of the expression, by its IANA name. Default: UTC.
    pub time_zone: String,
    /// The queue of the jobs.
    pub queue: QueueName,
    /// The payload of the jobs.
    pub payload: Payload,
    /// The priority of the jobs. Default: 0.
    pub priority: i32,
    /// Whether one job is put for all missed ticks. Default: `false`.
    pub catch_up: bool,
}

/// A cron entry as the store keeps it.
#[derive(Clone, Debug)]
pub struct CronEntry {
    /// The entry that was set.
    pub cron: Cron,
    /// Whether the entry is paused.
    pub paused: bool,
    /// Since when it is paused, if it is.
    pub paused_at: Option<DateTime<Utc>>,
    /// The operator who paused it, if it is paused and that is known.
    pub paused_by: Option<String>,
    /// The next tick. `None` if the entry is paused or has no further tick.
    pub next_at: Option<DateTime<Utc>>,
    /// The last tick for which a job was put.
    pub last_at: Option<DateTime<Utc>>,
    /// How many times in succession the job of the next tick could not be put.
    pub failures: u32,
    /// The error of the last of these failures. `None` if there was none.
    pub error: Option<String>,
}
