//! What is noted with a job when it is put, and does not change how it runs.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::store::Wake;
use crate::{EndedCounts, Error, JobId, WorkflowJob};

/// The trace context that is stored with a job, by header name: `traceparent`, `tracestate` and so on.
pub type Trace = BTreeMap<String, String>;

/// What was noted with a job when it was put, and does not change how it runs: the trace context of the put, the tags,
/// the metadata, and whether its end is awaited.
///
/// It is the JSON text that a store keeps, which is read on demand. Most jobs have none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Annotations(Option<Box<str>>);

/// What is noted with a job: the JSON object that is stored.
#[derive(Default, PartialEq, Serialize)]
pub(crate) struct Noted {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) trace: Trace,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tags: Vec<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub(crate) metadata: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cost: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) strict: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) notify: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) batch: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ended: Option<EndedCounts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) workflow: Option<WorkflowJob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) wake: Option<Wake>,
}

/// The members of the JSON object, each as its text, so that one which cannot be read hides no other.
#[derive(Default, Deserialize)]
struct Members<'a> {
    #[serde(borrow)]
    trace: Option<&'a RawValue>,
    tags: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
    notify: Option<&'a RawValue>,
    group: Option<&'a RawValue>,
    cost: Option<&'a RawValue>,
    strict: Option<&'a RawValue>,
    batch: Option<&'a RawValue>,
    ended: Option<&'a RawValue>,
    workflow: Option<&'a RawValue>,
    wake: Option<&'a RawValue>,
}

impl Annotations {
    /// The maximum number of tags.
    pub const MAX_TAGS: usize = 16;

    /// The maximum length of a tag, in bytes of UTF-8. The minimum is 1.
    pub const MAX_TAG_BYTES: usize = 128;

    /// The maximum length of the metadata, in bytes of JSON without white space.
    pub const MAX_METADATA_BYTES: usize = 4_096;

    /// The maximum length of a group, in bytes of UTF-8. The minimum is 1.
    pub const MAX_GROUP_BYTES: usize = 1_024;

    /// The maximum cost.
    pub const MAX_COST: u32 = 1_000_000;

    /// Returns the annotations of a job that is put in a trace context.
    ///
    /// Leaves out a header with a NUL, which stores cannot keep.
    pub(crate) fn new(mut noted: Noted) -> Result<Self, Error> {
        check_tags(&noted.tags)?;
        check_metadata(&noted.metadata)?;
        noted.group.as_deref().map_or(Ok(()), check_group)?;
        check_cost(noted.cost)?;
        noted.trace.retain(|name, value| !name.contains('\0') && !value.contains('\0'));
        if noted == Noted::default() {
            return Ok(Self::default());
        }
        Ok(Self::of(&noted))
    }

    fn of(noted: &Noted) -> Self {
        // Strings and values of JSON can always be written.
        Self(serde_json::to_string(noted).ok().map(Into::into))
    }

    /// Returns the same annotations of a job whose end is awaited. See [`crate::PutOptions::awaited`].
    #[must_use]
    pub fn awaited(&self) -> Self {
        Self::of(&Noted { notify: true, ..self.noted() })
    }

    /// Wraps JSON that was read from a store, without checks.
    #[must_use]
    pub fn from_stored(json: Option<String>) -> Self {
        Self(json.map(Into::into))
    }

    /// Returns the JSON to store, or `None` if nothing is noted.
    #[must_use]
    pub fn as_json(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Returns whether nothing is noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the trace context in which the job was put. It is empty if there was none, or if another program
    /// stored it in another form, as are the tags and the metadata.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.read(|members| members.trace)
    }

    /// Returns the tags, in the order in which they were given. See [`crate::PutOptions::tags`].
    #[must_use]
    pub fn tags(&self) -> Vec<String> {
        self.read(|members| members.tags)
    }

    /// Returns the metadata. It is empty if none was given. See [`crate::PutOptions::metadata`].
    #[must_use]
    pub fn metadata(&self) -> Map<String, Value> {
        self.read(|members| members.metadata)
    }

    /// Returns the group by which limits count the job. See [`crate::PutOptions::group`].
    #[must_use]
    pub fn group(&self) -> Option<String> {
        let group: Option<String> = self.read(|members| members.group);
        group.filter(|group| !group.is_empty())
    }

    /// Returns how many tokens of a rate the job takes, if that was stated. See [`crate::PutOptions::cost`].
    #[must_use]
    pub fn cost(&self) -> Option<u32> {
        self.read(|members| members.cost)
    }

    /// Returns whether the job keeps its serialization key while it waits for a retry. See
    /// [`crate::PutOptions::strict_order`].
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.read(|members| members.strict)
    }

    /// Returns the follow-up of the batch that the job belongs to, for [`crate::PutOptions::in_batch`].
    #[must_use]
    pub fn batch(&self) -> Option<JobId> {
        self.read(|members| members.batch)
    }

    /// Returns how the jobs have ended that this job has waited for. `None` if it has not waited for any, or waits
    /// still.
    #[must_use]
    pub fn ended(&self) -> Option<EndedCounts> {
        self.read(|members| members.ended)
    }

    /// Returns the same annotations of a follow-up that is due, or that waits again.
    pub(crate) fn with_ended(&self, ended: Option<EndedCounts>) -> Self {
        Self::of(&Noted { ended, wake: None, ..self.noted() })
    }

    /// Returns the workflow that the job belongs to, and its name in it. `None` if it belongs to none, or stands for
    /// one.
    #[must_use]
    pub fn workflow(&self) -> Option<WorkflowJob> {
        self.read(|members| members.workflow)
    }

    /// Returns the same annotations of a job of a workflow, which is awaited.
    pub(crate) fn in_workflow(&self, place: &WorkflowJob) -> Self {
        Self::of(&Noted {
            workflow: Some(place.clone()),
            batch: Some(place.id),
            notify: true,
            ..self.noted()
        })
    }

    /// Returns why the job of a workflow is due, if that was noted.
    #[must_use]
    pub fn wake(&self) -> Option<Wake> {
        self.read(|members| members.wake)
    }

    pub(crate) fn with_wake(&self, wake: Option<Wake>) -> Self {
        Self::of(&Noted { wake, ..self.noted() })
    }

    /// Returns whether the end of the job is awaited: the job is kept when it is done, and callers that wait are
    /// notified.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        // Every job that is settled is asked, and few have the member.
        self.as_json().is_some_and(|json| json.contains("\"notify\"")) && self.read(|members| members.notify)
    }

    fn noted(&self) -> Noted {
        Noted {
            trace: self.trace(),
            tags: self.tags(),
            metadata: self.metadata(),
            group: self.group(),
            cost: self.cost(),
            strict: self.is_strict(),
            notify: self.is_awaited(),
            batch: self.batch(),
            ended: self.ended(),
            workflow: self.workflow(),
            wake: self.wake(),
        }
    }

    fn read<'a, T: DeserializeOwned + Default>(
        &'a self,
        member: impl FnOnce(Members<'a>) -> Option<&'a RawValue>,
    ) -> T {
        self.as_json()
            .and_then(|json| serde_json::from_str(json).ok())
            .and_then(member)
            .and_then(|value| serde_json::from_str(value.get()).ok())
            .unwrap_or_default()
    }
}

/// Shows only the size, as for a payload.
impl fmt::Debug for Annotations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Annotations({} bytes)", self.as_json().map_or(0, str::len))
    }
}

/// Writes the JSON object without its empty members.
impl Serialize for Annotations {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.noted().serialize(serializer)
    }
}

fn check_tags(tags: &[String]) -> Result<(), Error> {
    let (most, bytes) = (Annotations::MAX_TAGS, Annotations::MAX_TAG_BYTES);
    let refused = |reason: String| Err(Error::InvalidAnnotation(reason));
    if tags.len() > most {
        return refused(format!("invalid tags: there must be at most {most}, and there are {}", tags.len()));
    }
    for tag in tags {
        let shown: String = tag.chars().take(40).collect();
        if tag.is_empty() || tag.len() > bytes {
            return refused(format!(
                "invalid tag {shown:?}: it must have 1 to {bytes} bytes, and has {}",
                tag.len()
            ));
        }
        if tag.contains('\0') {
            return refused(format!("invalid tag {shown:?}: it must not contain NUL"));
        }
    }
    Ok(())
}

pub(crate) fn check_group(group: &str) -> Result<(), Error> {
    let (shown, bytes): (String, _) = (group.chars().take(40).collect(), Annotations::MAX_GROUP_BYTES);
    let refused =
        |reason: String| Err(Error::InvalidAnnotation(format!("invalid group {shown:?}: it must {reason}")));
    if group.is_empty() || group.len() > bytes {
        return refused(format!("have 1 to {bytes} bytes, and has {}", group.len()));
    }
    if group.contains('\0') {
        return refused("not contain NUL".to_owned());
    }
    Ok(())
}

fn check_cost(cost: Option<u32>) -> Result<(), Error> {
    let most = Annotations::MAX_COST;
    match cost.filter(|cost| !(1..=most).contains(cost)) {
        Some(cost) => Err(Error::InvalidAnnotation(format!("invalid cost {cost}: it must be 1 to {most}"))),
        None => Ok(()),
    }
}

/// The text does not repeat the metadata.
fn check_metadata(metadata: &Map<String, Value>) -> Result<(), Error> {
    if metadata.is_empty() {
        return Ok(());
    }
    let refused =
        |reason: String| Err(Error::InvalidAnnotation(format!("invalid metadata: it must {reason}")));
    let json = serde_json::to_string(metadata).unwrap_or_default();
    let (most, bytes) = (Annotations::MAX_METADATA_BYTES, json.len());
    if bytes > most {
        return refused(format!("have at most {most} bytes as JSON, and has {bytes}"));
    }
    if serde_json::from_str::<Map<String, Value>>(&json).is_err() {
        return refused("have at most 127 levels".to_owned());
    }
    if metadata.iter().any(|(name, value)| name.contains('\0') || has_nul(value)) {
        return refused("not contain NUL".to_owned());
    }
    Ok(())
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

/// Returns whether a value contains another, as `@>` of PostgreSQL's `jsonb` does: an object has the members, an
/// array has an item for each, and anything else is equal.
pub(crate) fn contains(value: &Value, part: &Value) -> bool {
    match (value, part) {
        (Value::Object(members), Value::Object(parts)) => contains_members(members, parts),
        (Value::Array(items), Value::Array(parts)) => {
            parts.iter().all(|part| items.iter().any(|item| contains(item, part)))
        }
        (Value::Number(one), Value::Number(other)) => {
            one == other || (one.is_f64() != other.is_f64() && one.as_f64() == other.as_f64())
        }
        _ => value == part,
    }
}

/// Returns whether an object contains these members, as [`contains`] does.
pub(crate) fn contains_members(members: &Map<String, Value>, parts: &Map<String, Value>) -> bool {
    parts.iter().all(|(name, part)| members.get(name).is_some_and(|value| contains(value, part)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_contains_its_parts() {
        let value = json!({ "a": 1, "b": { "c": [1, { "d": "x", "e": null }], "f": 2.0 } });
        for (part, is_contained) in [
            (json!({}), true),
            (json!({ "a": 1.0, "b": { "f": 2 } }), true),
            (json!({ "b": { "c": [{ "e": null }] } }), true),
            (json!({ "b": { "c": [{ "e": null }, { "d": "x" }, 1, 1] } }), true),
            (json!({ "b": { "c": [2] } }), false),
            (json!({ "b": { "c": 1 } }), false),
            (json!({ "b": { "g": null } }), false),
            (json!({ "a": "1" }), false),
        ] {
            assert_eq!(contains(&value, &part), is_contained, "{part}");
        }
    }

    #[test]
    fn a_member_of_another_form_is_empty() {
        let stored = Annotations::from_stored(Some(
            r#"{"trace": 1, "tags": ["a"], "metadata": [], "notify": "yes", "more": 2}"#.to_owned(),
        ));
        assert_eq!((stored.trace(), stored.tags()), (Trace::new(), vec!["a".to_owned()]));
        assert!(stored.metadata().is_empty() && !stored.is_awaited());
    }

    #[test]
    fn an_awaited_job_keeps_its_other_annotations() {
        let stored =
            Annotations::from_stored(Some(r#"{"tags": ["a"], "metadata": {"notify": 1}}"#.to_owned()));
        assert!(!stored.is_awaited());
        let awaited = stored.awaited();
        assert!(awaited.is_awaited());
        assert_eq!((awaited.tags(), awaited.metadata()), (stored.tags(), stored.metadata()));
        assert!(Annotations::default().awaited().is_awaited());
    }

    #[test]
    fn a_member_that_cannot_be_read_hides_no_other() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for metadata in ["{\"x\":1e400}".to_owned(), format!("{{\"x\":{deep}}}")] {
            let stored = Annotations::from_stored(Some(format!(
                r#"{{"tags":["a"],"trace":{{"traceparent":"b"}},"metadata":{metadata}}}"#
            )));
            assert_eq!((stored.tags(), stored.trace().len()), (vec!["a".to_owned()], 1), "{metadata}");
            assert!(stored.metadata().is_empty(), "{metadata}");
        }
    }

    #[test]
    fn metadata_that_could_not_be_read_again_is_refused() {
        let deep = (0..200).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
        let metadata = Map::from_iter([("x".to_owned(), deep)]);
        let error = Annotations::new(Noted { metadata, ..Noted::default() }).expect_err("it is too deep");
        assert_eq!(error.to_string(), "invalid metadata: it must have at most 127 levels");
    }
}
