//! Payloads: exact bytes, limits, codecs, and payloads that cannot be decoded.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use pq_core::{Codec, CodecError, Error, PayloadLimits, Queue, Wait};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::cases;
use crate::Fixture;
use crate::harness::{Harness, roll_back};

cases![
    empty_containers_null_zero_and_empty_text_are_valid_payloads: Both,
    payloads_are_stored_byte_for_byte: Own,
    typed_payloads_are_returned_as_their_type: Own,
    a_payload_over_the_limit_is_refused_before_anything_is_sent: Both,
    a_payload_nested_too_deep_is_refused: Both,
    the_largest_and_deepest_allowed_payloads_are_returned: Both,
    data_that_serde_cannot_encode_is_refused: Own,
    an_undecodable_payload_is_moved_to_dead_and_the_next_job_is_returned: Own,
    an_undecodable_payload_in_a_transaction_is_dead_at_the_commit: Both,
    many_undecodable_payloads_do_not_hide_a_decodable_one: Own,
    the_codec_can_be_replaced: Own,
    a_codec_must_produce_json: Own,
    a_payload_that_the_codec_cannot_decode_is_moved_to_dead: Own,
];

fn empty_containers_null_zero_and_empty_text_are_valid_payloads<F: Fixture>(harness: &Harness<F>) {
    let all = [json!({}), json!([]), json!(null), json!(0), json!(""), json!(false)];
    for data in &all {
        harness.put(data.clone());
    }
    assert_eq!(harness.drain(), all);
}

fn payloads_are_stored_byte_for_byte<F: Fixture>(harness: &Harness<F>) {
    let queue: Queue<_, Box<RawValue>> = harness.named("apples");
    let texts = [
        "{\"b\" : 1,\"a\":2, \"a\":3}",
        "\"\\u0000 \\ud800 \\u00e9 é 𝄞\"",
        "[123456789012345678901234567890, 1e999, -0.0, 1.10]",
        "[1,\n\t2]",
    ];
    for text in texts {
        queue.put(&RawValue::from_string(text.to_owned()).unwrap()).unwrap();
    }
    for text in texts {
        let job = queue.on(&mut harness.connect()).get().unwrap().unwrap();
        assert_eq!((job.data.get(), job.payload.as_str()), (text, text));
    }
}

fn typed_payloads_are_returned_as_their_type<F: Fixture>(harness: &Harness<F>) {
    let queue: Queue<_, BTreeMap<String, Option<u8>>> = harness.named("typed");
    let data = BTreeMap::from([("a".to_owned(), Some(1)), ("b".to_owned(), None)]);
    queue.put(&data).unwrap();
    assert_eq!(queue.get(Wait::No).unwrap().map(|job| job.data), Some(data));
}

fn a_payload_over_the_limit_is_refused_before_anything_is_sent<F: Fixture>(harness: &Harness<F>) {
    let small = PayloadLimits { max_bytes: 10, ..PayloadLimits::default() };
    let queue: Queue<_, Value> = harness.pq.clone().with_limits(small).queue("apples").unwrap();
    let error = queue.put_many(&[json!(1), json!("123456789")]).unwrap_err();
    let found = harness.fixture.core_error(&error);
    assert!(matches!(found, Some(Error::PayloadTooLarge { bytes: 11, limit: 10, .. })), "{error}");
    assert_eq!(harness.counts().live(), 0);
    let mebibyte = Value::String("x".repeat(1 << 20));
    assert!(harness.try_put(&mebibyte, &pq_core::PutOptions::new()).is_err());
}

fn a_payload_nested_too_deep_is_refused<F: Fixture>(harness: &Harness<F>) {
    let deep = (0..128).fold(json!(0), |inside, _| json!([inside]));
    let error = harness.try_put(&deep, &pq_core::PutOptions::new()).unwrap_err();
    let found = harness.fixture.core_error(&error);
    assert!(matches!(found, Some(Error::PayloadTooDeep { limit: 127, .. })), "{error}");
    assert_eq!(harness.counts().live(), 0);
}

fn the_largest_and_deepest_allowed_payloads_are_returned<F: Fixture>(harness: &Harness<F>) {
    let deep = (0..127).fold(json!(0), |inside, _| json!([inside]));
    let large = Value::String("x".repeat((1 << 20) - 2));
    harness.put(deep.clone());
    harness.put(large.clone());
    assert_eq!(harness.drain(), [deep, large]);
}

fn data_that_serde_cannot_encode_is_refused<F: Fixture>(harness: &Harness<F>) {
    let queue: Queue<_, BTreeMap<Vec<u8>, u8>> = harness.named("apples");
    let error = queue.put(&BTreeMap::from([(vec![1], 1)])).unwrap_err();
    assert!(matches!(harness.fixture.core_error(&error), Some(Error::Encode(_))), "{error}");
}

fn an_undecodable_payload_is_moved_to_dead_and_the_next_job_is_returned<F: Fixture>(harness: &Harness<F>) {
    harness.put("not a number");
    harness.put(2);
    let numbers: Queue<_, u32> = harness.named("apples");
    assert_eq!(numbers.get(Wait::No).unwrap().map(|job| job.data), Some(2));
    let counts = harness.counts();
    assert_eq!((counts.live(), counts.dead), (0, 1));
}

fn an_undecodable_payload_in_a_transaction_is_dead_at_the_commit<F: Fixture>(harness: &Harness<F>) {
    harness.put("not a number");
    harness.put(2);
    let numbers: Queue<_, u32> = harness.named("apples");
    let rolled_back = harness.transaction(|conn| {
        assert_eq!(numbers.on(conn).get()?.map(|job| job.data), Some(2));
        roll_back::<()>()
    });
    assert!(rolled_back.is_err());
    assert_eq!((harness.counts().ready, harness.counts().dead), (2, 0));
    harness.transaction(|conn| Ok(numbers.on(conn).get()?.map(|job| job.data))).unwrap();
    assert_eq!((harness.counts().ready, harness.counts().dead), (0, 1));
}

fn many_undecodable_payloads_do_not_hide_a_decodable_one<F: Fixture>(harness: &Harness<F>) {
    for _ in 0..20 {
        harness.put("not a number");
    }
    harness.put(7);
    let numbers: Queue<_, u32> = harness.named("apples");
    assert_eq!(numbers.get_many(3, Wait::No).unwrap().first().map(|job| job.data), Some(7));
    assert_eq!(harness.counts().dead, 20);
    assert!(numbers.get(Wait::No).unwrap().is_none());
}

/// Stores the JSON text reversed, as a JSON string.
struct Backwards;

impl Codec for Backwards {
    fn encode(&self, json: String) -> Result<String, CodecError> {
        let reversed: String = json.chars().rev().collect();
        Ok(Value::String(reversed).to_string())
    }

    fn decode<'a>(&self, stored: &'a str) -> Result<Cow<'a, str>, CodecError> {
        let text: String = serde_json::from_str(stored).map_err(|_| CodecError::new("not a JSON string"))?;
        Ok(text.chars().rev().collect::<String>().into())
    }
}

fn the_codec_can_be_replaced<F: Fixture>(harness: &Harness<F>) {
    let queue = harness.queue().with_codec(Arc::new(Backwards));
    queue.put(&json!([1, 23])).unwrap();
    queue.put(&json!([1, 23])).unwrap();
    assert_eq!(harness.get().map(|job| job.data), Some(json!("]32,1[")), "the stored form");
    assert_eq!(queue.get(Wait::No).unwrap().map(|job| job.data), Some(json!([1, 23])));
}

/// Produces text that is not JSON.
struct NotJson;

impl Codec for NotJson {
    fn encode(&self, _: String) -> Result<String, CodecError> {
        Ok("{".to_owned())
    }

    fn decode<'a>(&self, stored: &'a str) -> Result<Cow<'a, str>, CodecError> {
        Ok(stored.into())
    }
}

fn a_codec_must_produce_json<F: Fixture>(harness: &Harness<F>) {
    let error = harness.queue().with_codec(Arc::new(NotJson)).put(&json!(1)).unwrap_err();
    assert!(matches!(harness.fixture.core_error(&error), Some(Error::NotJson { .. })), "{error}");
    assert_eq!(harness.counts().live(), 0);
}

fn a_payload_that_the_codec_cannot_decode_is_moved_to_dead<F: Fixture>(harness: &Harness<F>) {
    harness.put(1);
    let queue = harness.queue().with_codec(Arc::new(Backwards));
    assert!(queue.get(Wait::No).unwrap().is_none());
    assert_eq!((harness.counts().live(), harness.counts().dead), (0, 1));
}
