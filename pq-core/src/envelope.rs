//! The payload of a task's job: the JSON object that Python's `pq.tasks` writes and reads.
//!
//! The keys `function`, `args`, `kwargs`, `retried`, `retry_in` and `max_retries` are Python's. Both implementations
//! keep unknown keys when they retry a job. This one adds `retries`, `counted`, `backoff`, `timeout`, `lease` and
//! `unknown`, and reads `max_retries` and `retry_in` only from calls of others: in its own they tell Python the
//! policy of the task.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::{Backoff, CodecError, Error, IntoWhen, JobId, When};

/// A JSON object that keeps the order of its keys, and its values byte for byte.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    fn get(&self, key: &str) -> Option<&RawValue> {
        // The last of duplicate keys takes precedence, as in Python.
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }

    fn set(&mut self, key: &str, value: Box<RawValue>) {
        match self.0.iter_mut().rev().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }

    fn read<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        self.get(key).and_then(|value| serde_json::from_str(value.get()).ok())
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Object, M::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Object(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// The arguments of a call as JSON: an array of positional and an object of keyword arguments.
pub(crate) struct Arguments {
    pub(crate) args: String,
    pub(crate) kwargs: String,
}

impl Arguments {
    /// Returns the arguments of a call whose JSON is of any kind.
    pub(crate) fn of(json: &str) -> Self {
        let (args, kwargs) = match json.as_bytes().first() {
            Some(b'{') => ("[]".to_owned(), json.to_owned()),
            Some(b'[') => (json.to_owned(), "{}".to_owned()),
            _ if json == "null" => ("[]".to_owned(), "{}".to_owned()),
            _ => (format!("[{json}]"), "{}".to_owned()),
        };
        Self { args, kwargs }
    }
}

/// The payload of a task's job. A clone shares it until one of them is changed.
#[derive(Clone, Debug)]
pub(crate) struct Envelope(Arc<Object>);

impl Envelope {
    /// Creates the call of a task by its name.
    pub(crate) fn new(
        function: &str,
        arguments: Arguments,
        max_retries: u32,
        retry_in: Duration,
    ) -> Result<Self, Error> {
        let mut envelope = Self(Arc::default());
        envelope.put("function", &function)?;
        envelope.set_arguments(arguments)?;
        envelope.put("retried", &0)?;
        // Python accepts whole seconds.
        envelope.put("retry_in", &format!("{}s", retry_in.as_secs_f64().ceil() as u64))?;
        envelope.put("max_retries", &max_retries)?;
        Ok(envelope)
    }

    fn set(&mut self, key: &str, value: Box<RawValue>) {
        Arc::make_mut(&mut self.0).set(key, value);
    }

    /// Reads the JSON of a job. The error text does not repeat the payload.
    pub(crate) fn read(json: &str) -> Result<Self, String> {
        let object: Object = serde_json::from_str(json)
            .map_err(|_| "invalid task payload: it must be a JSON object".to_owned())?;
        let envelope = Self(Arc::new(object));
        match envelope.function() {
            Some(_) => Ok(envelope),
            None => Err("invalid task payload: \"function\" must be a string".to_owned()),
        }
    }

    pub(crate) fn function(&self) -> Option<String> {
        self.0.read("function")
    }

    /// Returns how many attempts failed as other jobs: in Python each retry is a job of its own.
    ///
    /// `retried` also counts the failures of this job here, and a job that is requeued from the archive starts anew.
    /// `counted` says which job failed here, and how often.
    pub(crate) fn retried_before(&self, id: JobId) -> u32 {
        let retried: u32 = self.0.read("retried").unwrap_or_default();
        match self.0.read::<(i64, u32)>("counted") {
            Some((job, failures)) if job == id.0 => retried.saturating_sub(failures),
            _ => retried,
        }
    }

    /// Stores that the job has failed `failures` times, those as other jobs included.
    pub(crate) fn count_failures(&mut self, id: JobId, failures: u32) -> Result<(), Error> {
        let here = failures.saturating_sub(self.retried_before(id));
        self.put("retried", &failures)?;
        self.put("counted", &(id.0, here))
    }

    /// Returns the maximum number of retries that the call states, or `None` if that of the task applies.
    ///
    /// Python writes its task's default, 0, into each call, so 0 states nothing.
    pub(crate) fn max_retries(&self) -> Option<u32> {
        match self.0.get("backoff") {
            Some(_) => self.0.read("retries"),
            None => self.0.read("max_retries").filter(|retries| *retries > 0),
        }
    }

    /// Returns the backoff that the call states, or `None` if that of the task applies.
    pub(crate) fn backoff(&self) -> Option<Backoff> {
        if let Some(ours) = self.0.get("backoff") {
            return Backoff::from_wire(ours.get());
        }
        let delay = match (self.0.read("max_retries"), self.0.read::<Option<String>>("retry_in").flatten()) {
            // Python writes a delay into each call, also if there are no retries.
            (Some(0), _) | (None, None) => return None,
            (_, text) => text.and_then(|text| parse_duration(&text)).unwrap_or_default(),
        };
        Some(Backoff::fixed(delay))
    }

    /// Returns how often a worker without a handler for the task has left the job to others.
    pub(crate) fn times_unknown(&self) -> u32 {
        self.0.read("unknown").unwrap_or_default()
    }

    pub(crate) fn duration(&self, key: &str) -> Option<Duration> {
        parse_duration(&self.0.read::<String>(key)?)
    }

    /// Decodes the arguments: keyword arguments from an object, positional ones from an array.
    ///
    /// A single positional argument is also decoded without the array. If there are both kinds, the object is the last
    /// item of the array.
    pub(crate) fn arguments<A: DeserializeOwned>(&self) -> Result<A, String> {
        let read = self.argument_forms()?.iter().find_map(|json| serde_json::from_str(json).ok());
        read.ok_or_else(|| "invalid arguments: they must match the task's type".to_owned())
    }

    /// Returns the JSON texts that the arguments may be decoded from, the most natural first.
    pub(crate) fn argument_forms(&self) -> Result<Vec<String>, String> {
        let args: Vec<Box<RawValue>> = self.0.read("args").unwrap_or_default();
        let kwargs: Object = self.0.read("kwargs").unwrap_or_default();
        let listed = |items: &[&str]| format!("[{}]", items.join(","));
        let mut items: Vec<&str> = args.iter().map(|arg| arg.get()).collect();
        let named =
            serde_json::to_string(&kwargs).map_err(|_| "invalid arguments: they must be JSON".to_owned())?;
        Ok(match (items.len(), kwargs.0.len()) {
            (0, 0) => vec!["null".to_owned(), "{}".to_owned(), "[]".to_owned()],
            (0, _) => vec![named],
            (1, 0) => vec![items[0].to_owned(), listed(&items)],
            (_, 0) => vec![listed(&items)],
            (_, _) => {
                items.push(&named);
                vec![listed(&items)]
            }
        })
    }

    pub(crate) fn set_arguments(&mut self, Arguments { args, kwargs }: Arguments) -> Result<(), Error> {
        self.set("args", RawValue::from_string(args).map_err(encode_error)?);
        self.set("kwargs", RawValue::from_string(kwargs).map_err(encode_error)?);
        Ok(())
    }

    pub(crate) fn set_backoff(&mut self, wire: String) -> Result<(), Error> {
        self.set("backoff", RawValue::from_string(wire).map_err(encode_error)?);
        Ok(())
    }

    pub(crate) fn put<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) -> Result<(), Error> {
        self.set(key, serde_json::value::to_raw_value(value).map_err(encode_error)?);
        Ok(())
    }

    pub(crate) fn to_json(&self) -> Result<String, Error> {
        serde_json::to_string(&*self.0).map_err(encode_error)
    }
}

fn encode_error(found: serde_json::Error) -> Error {
    Error::Encode(CodecError::new(found.to_string()))
}

/// Reads a duration in the format of both languages.
fn parse_duration(text: &str) -> Option<Duration> {
    match text.into_when().ok()? {
        When::In(delay) => delay.to_std().ok(),
        When::At(_) => None,
    }
}

/// Formats a duration for both languages, in milliseconds if it is not a number of whole seconds.
pub(crate) fn format_duration(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => {
            format!("{}ms", TimeDelta::from_std(duration).map_or(i64::MAX, |delta| delta.num_milliseconds()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PYTHON_CALL: &str = r#"{"function": "shop.mail", "args": [1, "\u00e9"], "kwargs": {}, "retried": 2, "retry_in": "10s", "max_retries": 3, "extra": [1e400, 12345678901234567890123]}"#;

    #[test]
    fn a_python_call_is_read() -> Result<(), String> {
        let envelope = Envelope::read(PYTHON_CALL)?;
        assert_eq!(envelope.function().as_deref(), Some("shop.mail"));
        assert_eq!((envelope.retried_before(JobId(1)), envelope.max_retries()), (2, Some(3)));
        assert_eq!(envelope.arguments::<(u8, String)>()?, (1, "é".to_owned()));
        let delay = envelope.backoff().map(|backoff| backoff.delay(1, crate::JobId(1)));
        assert_eq!(delay, Some(Duration::from_secs(10)));
        Ok(())
    }

    #[test]
    fn a_call_that_states_no_policy_has_none() -> Result<(), String> {
        for (policy, retries, delay) in [
            ("", None, None),
            (r#", "max_retries": 0, "retry_in": "30s""#, None, None),
            (r#", "retry_in": null"#, None, None),
            (r#", "retry_in": "5s""#, None, Some(5)),
            (r#", "max_retries": 2, "retry_in": null"#, Some(2), Some(0)),
            (r#", "max_retries": 2, "retry_in": "1s", "backoff": "task""#, None, None),
            (r#", "max_retries": 2, "retries": 0, "backoff": {"fixed": {"ms": 7000}}"#, Some(0), Some(7)),
        ] {
            let call = Envelope::read(&format!(r#"{{"function": "f"{policy}}}"#))?;
            let stated = call.backoff().map(|backoff| backoff.delay(1, crate::JobId(1)).as_secs());
            assert_eq!((call.max_retries(), stated), (retries, delay), "{policy}");
        }
        Ok(())
    }

    #[test]
    fn failures_here_and_in_python_add_up() -> Result<(), Box<dyn std::error::Error>> {
        let mut envelope = Envelope::read(PYTHON_CALL)?;
        for failures in 3..=5 {
            envelope.count_failures(JobId(5), failures)?;
            assert_eq!(envelope.0.read("retried"), Some(failures));
            assert_eq!(envelope.retried_before(JobId(5)), 2);
        }
        // Python's next retry is another job.
        assert_eq!(envelope.retried_before(JobId(6)), 5);
        Ok(())
    }

    #[test]
    fn unknown_keys_survive_a_rewrite_byte_for_byte() -> Result<(), Box<dyn std::error::Error>> {
        let mut envelope = Envelope::read(PYTHON_CALL)?;
        envelope.put("retried", &3)?;
        let expected = PYTHON_CALL.replace("\"retried\": 2", "\"retried\": 3");
        let packed = |json: &str| json.replace(": ", ":").replace(", \"", ",\"");
        assert_eq!(packed(&envelope.to_json()?), packed(&expected));
        Ok(())
    }

    #[test]
    fn arguments_of_any_shape_are_decoded() -> Result<(), Box<dyn std::error::Error>> {
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        struct Mail {
            to: String,
        }
        fn round_trip<A: Serialize + DeserializeOwned>(value: &A) -> Result<A, Box<dyn std::error::Error>> {
            let json = serde_json::to_string(value)?;
            let envelope = Envelope::new("f", Arguments::of(&json), 0, Duration::ZERO)?.to_json()?;
            Ok(Envelope::read(&envelope)?.arguments()?)
        }
        assert_eq!(round_trip(&Mail { to: "é".to_owned() })?, Mail { to: "é".to_owned() });
        assert_eq!(round_trip(&(1, "two".to_owned()))?, (1, "two".to_owned()));
        assert_eq!(round_trip(&vec![7])?, vec![7]);
        assert_eq!(round_trip(&Vec::<u8>::new())?, Vec::<u8>::new());
        assert_eq!(round_trip(&"text".to_owned())?, "text");
        assert_eq!(round_trip(&5)?, 5);
        round_trip(&())?;
        let both = r#"{"function": "f", "args": [1], "kwargs": {"to": "x"}}"#;
        let (number, mail): (u8, Mail) = Envelope::read(both)?.arguments()?;
        assert_eq!((number, mail.to.as_str()), (1, "x"));
        assert!(Envelope::read(both)?.arguments::<u8>().is_err());
        Ok(())
    }

    #[test]
    fn a_payload_that_is_not_a_task_is_refused() {
        for json in ["1", "[]", "{}", r#"{"function": 7}"#, "{"] {
            let read = Envelope::read(json).map(drop);
            assert!(read.is_err_and(|reason| reason.starts_with("invalid task payload")), "{json}");
        }
    }

    #[test]
    fn durations_round_trip() {
        for duration in [Duration::ZERO, Duration::from_millis(1_500), Duration::from_secs(90)] {
            assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }
    }
}
