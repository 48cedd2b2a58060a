//! What a call of a task is expected to be.

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use pq_core::{IntoWhen, JobState, When};
use serde::Serialize;

use crate::calls::Call;

/// How much a stored time may differ from the expected one. The jobs of a large bulk put are dated by one clock and
/// scheduled by another.
const TOLERANCE: TimeDelta = TimeDelta::seconds(1);

/// A description of a call, for [`assert_called`](crate::assert_called) and
/// [`assert_not_called`](crate::assert_not_called). A call matches if all conditions hold.
///
/// A reference to arguments converts into it.
///
/// ```
/// use pq_testing::Expected;
///
/// let world = "world".to_owned();
/// let expected = Expected::arguments(&world).schedule_at("1h").serialization_key("greetings");
/// assert_eq!(expected.to_string(), r#""world", scheduled 3600s after its put, serialization key "greetings""#);
/// # let _: Expected<'_, String> = expected;
/// ```
#[must_use]
pub struct Expected<'e, A> {
    conditions: Vec<Condition<'e, A>>,
}

struct Condition<'e, A> {
    text: String,
    holds: Box<Holds<'e, A>>,
}

type Holds<'e, A> = dyn Fn(&Call<A>) -> bool + 'e;

impl<'e, A: PartialEq + Serialize> From<&'e A> for Expected<'e, A> {
    fn from(arguments: &'e A) -> Self {
        Self::arguments(arguments)
    }
}

impl<'e, A: 'e> Expected<'e, A> {
    /// Describes any call.
    pub fn any() -> Self {
        Self { conditions: Vec::new() }
    }

    /// Describes calls with these arguments.
    pub fn arguments(arguments: &'e A) -> Self
    where
        A: PartialEq + Serialize,
    {
        let text = serde_json::to_string(arguments).unwrap_or_else(|error| error.to_string());
        Self::any().with(text, move |call| call.arguments == *arguments)
    }

    /// Adds a condition of your own, with the text that a failed assertion shows for it.
    ///
    /// ```
    /// use pq_testing::{Call, Expected};
    ///
    /// let long = Expected::any().with("a long name", |call: &Call<String>| call.arguments.len() > 20);
    /// # let _ = long;
    /// ```
    pub fn with(mut self, text: impl Into<String>, holds: impl Fn(&Call<A>) -> bool + 'e) -> Self {
        self.conditions.push(Condition { text: text.into(), holds: Box::new(holds) });
        self
    }

    /// Requires this schedule, within a second: an instant, or a delay that is counted from the put of the job.
    ///
    /// # Panics
    ///
    /// Panics if it is not a time.
    #[track_caller]
    pub fn schedule_at(self, when: impl IntoWhen) -> Self {
        let when = checked(when);
        self.with(format!("scheduled {}", shown(when)), move |call| {
            is_at(call.job.schedule_at, when, call.job.enqueued_at)
        })
    }

    /// Requires that the job was due at once.
    pub fn unscheduled(self) -> Self {
        self.with("unscheduled", |call| call.job.schedule_at.is_none())
    }

    /// Requires this `expected_at`, within a second: an instant, or a delay that is counted from the put of the job.
    ///
    /// # Panics
    ///
    /// Panics if it is not a time.
    #[track_caller]
    pub fn expected_at(self, when: impl IntoWhen) -> Self {
        let when = checked(when);
        self.with(format!("expected {}", shown(when)), move |call| {
            is_at(call.job.expected_at, when, call.job.enqueued_at)
        })
    }

    /// Requires this priority. The priority of a call that sets none is 0.
    pub fn priority(self, priority: i32) -> Self {
        self.with(format!("priority {priority}"), move |call| call.job.priority == priority)
    }

    /// Requires this serialization key.
    pub fn serialization_key(self, key: impl Into<String>) -> Self {
        let key = key.into();
        self.with(format!("serialization key {key:?}"), move |call| {
            call.job.serialization_key.as_ref().is_some_and(|of_call| of_call.as_str() == key)
        })
    }

    /// Requires this unique key.
    pub fn unique_key(self, key: impl Into<String>) -> Self {
        let key = key.into();
        self.with(format!("unique key {key:?}"), move |call| {
            call.job.unique_key.as_ref().is_some_and(|of_call| of_call.as_str() == key)
        })
    }

    /// Requires that the job is in this state now.
    pub fn state(self, state: JobState) -> Self {
        self.with(format!("state {state}"), move |call| call.job.state == state)
    }

    pub(crate) fn matches(&self, call: &Call<A>) -> bool {
        self.conditions.iter().all(|condition| (condition.holds)(call))
    }
}

impl<A> fmt::Display for Expected<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.conditions.is_empty() {
            return f.write_str("anything");
        }
        let texts: Vec<&str> = self.conditions.iter().map(|condition| condition.text.as_str()).collect();
        f.write_str(&texts.join(", "))
    }
}

impl<A> fmt::Debug for Expected<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expected({self})")
    }
}

#[track_caller]
fn checked(when: impl IntoWhen) -> When {
    when.into_when().unwrap_or_else(|error| panic!("{error}"))
}

fn shown(when: When) -> String {
    match when {
        When::At(at) => format!("at {at}"),
        When::In(delay) => match delay.to_std() {
            Ok(delay) => format!("{delay:?} after its put"),
            Err(_) => format!("{:?} before its put", delay.abs().to_std().unwrap_or_default()),
        },
    }
}

fn is_at(stored: Option<DateTime<Utc>>, when: When, put_at: DateTime<Utc>) -> bool {
    let wanted = match when {
        When::At(at) => Some(at),
        When::In(delay) => put_at.checked_add_signed(delay),
    };
    stored.zip(wanted).is_some_and(|(stored, wanted)| (stored - wanted).abs() <= TOLERANCE)
}
