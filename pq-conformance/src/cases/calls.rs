//! Calls of tasks whose arguments are JSON. Section 14 of the specification has the same for SQL.

use pq_core::{CallOptions, JobState};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{CaseError, Harness, Seen, both, run_until_empty, task};

cases![
    a_call_of_json_has_both_kinds_of_arguments: Own,
    a_call_of_json_that_is_not_a_list_and_an_object_is_refused: Own,
];

fn raw(json: &str) -> Box<RawValue> {
    serde_json::from_str(json).unwrap()
}

fn a_call_of_json_has_both_kinds_of_arguments<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, (u8, String, Value)>(harness).with_defaults(CallOptions::new().priority(3));
    let seen = Seen::new();
    let note = seen.clone();
    for handler in both::<F, _, _, _>(&task, move |job| {
        note.push((job.priority, job.serialization_key.is_some(), job.data));
        Ok::<_, CaseError>(())
    }) {
        let options = CallOptions::new().serialization_key("key");
        task.call_json(&raw(" [7, \"ж\"] "), &raw(" {\"to\":\t1}"), &options).unwrap();
        assert_eq!(run_until_empty(harness, handler).done, 1);
    }
    assert_eq!(seen.all(), vec![(3, true, (7, "ж".to_owned(), json!({ "to": 1 }))); 2]);
}

fn a_call_of_json_that_is_not_a_list_and_an_object_is_refused<F: Fixture>(harness: &Harness<F>) {
    let task = task::<F, ()>(harness);
    for (args, kwargs, reason) in [
        ("{}", "{}", "invalid args: they must be a JSON array"),
        ("null", "{}", "invalid args: they must be a JSON array"),
        ("[]", "[]", "invalid kwargs: they must be a JSON object"),
        ("[]", "1", "invalid kwargs: they must be a JSON object"),
    ] {
        let refused = task.call_json(&raw(args), &raw(kwargs), &CallOptions::new());
        assert_eq!(refused.unwrap_err().to_string(), reason);
    }
    assert_eq!(harness.counts().total(), 0);
    assert!(harness.archived(JobState::Dead).is_empty());
}
