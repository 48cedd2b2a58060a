use std::time::Duration;

use cpu_time::ThreadTime;
use proptest::prelude::*;
use serde_json::{Map, Value};

use super::{Codec, MAX_DEPTH, MAX_INT_DIGITS, MAX_VALUES, Pickle, fixtures};

/// Returns the JSON string that is stored for these bytes.
fn stored(pickle: &[u8]) -> String {
    let chars: String = pickle.iter().copied().map(char::from).collect();
    serde_json::to_string(&chars).expect("a string is JSON")
}

fn decode(pickle: &[u8]) -> Result<String, String> {
    Pickle.decode(&stored(pickle)).map(Into::into).map_err(|found| found.to_string())
}

fn encode(json: &str) -> Result<String, String> {
    Pickle.encode(json.to_owned()).map_err(|found| found.to_string())
}

#[track_caller]
fn reads(pickle: &[u8], json: &str) {
    assert_eq!(decode(pickle).as_deref(), Ok(json));
}

#[track_caller]
fn fails(pickle: &[u8], part: &str) {
    let text = decode(pickle).expect_err("this must not be read");
    assert!(text.contains(part), "{text:?} does not say {part:?}");
    assert!(text.chars().count() < 300 && !text.contains(char::is_control), "{text:?}");
}

#[track_caller]
fn comes_back(json: &str) {
    let stored = encode(json).expect("this must be written");
    let back = Pickle.decode(&stored).expect("what was written must be read");
    assert_eq!(back, json);
}

fn hex(digits: &str) -> Vec<u8> {
    let byte = |pair: &[u8]| super::text::hex(pair).and_then(|byte| u8::try_from(byte).ok());
    digits.as_bytes().chunks(2).map(|pair| byte(pair).expect("a fixture is hex")).collect()
}

#[test]
fn reads_every_protocol_of_cpython() {
    for pickle in fixtures::PICKLES {
        reads(&hex(pickle), fixtures::JSON);
    }
}

/// The stored text is `json.dumps(pickletools.optimize(pickle.dumps(json.loads(text), 0))
/// .decode("latin-1"))` by CPython 3.11.7.
#[test]
fn writes_what_cpython_writes() {
    let json = r#" {"b" : [1, -5,2147483648,1180591620717411303424,-0,1.5,1e16,1E-5,true,false,null],
        "a":{"x":[],"y":{}},"s":"a\\\u0000\n\r\u001aé€😀\ud800\u0001\/","b2":"\ud83d\uDE00"} "#;
    let python = concat!(
        r#""(dVb\n(lI1\naI-5\naL2147483648L\naL1180591620717411303424L\naI0\naF1.5\naF1e+16\naF1e-05\n"#,
        r#"aI01\naI00\naNasVa\n(dVx\n(lsVy\n(dssVs\nVa\\u005c\\u0000\\u000a\\u000d\\u001a\u00e9\\u20ac"#,
        r#"\\U0001f600\\ud800\u0001/\nsVb2\nV\\U0001f600\ns.""#,
    );
    let python: String = serde_json::from_str(python).expect("the fixture is JSON");
    let ours: String = serde_json::from_str(&encode(json).expect("it is plain")).expect("it is JSON");
    assert_eq!(ours, python);
}

#[test]
fn reads_what_it_writes() {
    comes_back(fixtures::JSON);
    let edges =
        ["null", "true", "0", "-0.0", "\"\"", "[]", "{}", r#"[[],{"":[{}]}]"#, r#"":""#, r#"{":":":"}"#];
    edges.into_iter().for_each(comes_back);
    comes_back(r#""\ud800\\\"\b\f\n\r\t\u0000\udfff""#);
    comes_back(&format!("-1{}", "0".repeat(MAX_INT_DIGITS - 1)));
    comes_back(&format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH)));
}

#[test]
fn refuses_json_that_does_not_round_trip() {
    for (json, part) in [
        (format!("{}{}", "[".repeat(MAX_DEPTH + 1), "]".repeat(MAX_DEPTH + 1)), "at most 127 levels"),
        (format!("[{}]", "1".repeat(MAX_INT_DIGITS + 1)), "4300 digits"),
        ("1e400".to_owned(), "range of a float"),
        ("[1".to_owned(), "invalid JSON"),
        ("[1] secret".to_owned(), "invalid JSON"),
        (String::new(), "invalid JSON"),
        (format!("[null{}]", ",null".repeat(MAX_VALUES)), "values"),
    ] {
        let text = encode(&json).expect_err("this must not be written");
        assert!(text.contains(part) && !text.contains("secret"), "{text}");
    }
}

#[test]
fn refuses_text_that_is_not_a_pickle() {
    for text in ["{\"secret\":1}", "5", "\"secret", "\"secret\u{100}\"", "\"\\ud800\"", ""] {
        let found = Pickle.decode(text).expect_err("this is no pickle").to_string();
        assert!(found.starts_with("invalid pickle") && !found.contains("secret"), "{found}");
    }
}

#[test]
fn reads_the_opcodes_that_cpython_3_no_longer_writes() {
    reads(b"S'a\\'\\x41\\n\\\\'\np0\n.", r#""a'A\n\\""#);
    reads(b"S\"it's\"\n.", r#""it's""#);
    reads(b"(U\x01aT\x01\0\0\0bl.", r#"["a","b"]"#);
    reads(b"V\\ud83d\\ude00\\x\\\\u0041\\\n.", r#""\ud83d\ude00\\x\\\\u0041\\""#);
    reads(b"X\x06\0\0\0\xed\xa0\xbd\xed\xb8\x80.", r#""\ud83d\ude00""#);
    reads(b"NN0.junk", "null");
    reads(b"K\x01(K\x020(10K\x03.", "3");
    reads(b"(I1\nlp0\n0g0\n2\x86.", "[[1],[1]]");
    reads(b"\x8a\x00.", "0");
    reads(b"\x8a\x02\x00\x80.", "-32768");
    reads(b"\x8b\x05\x00\x00\x00\xff\xff\xff\xff\x00.", "4294967295");
    reads(b"(L5\nL-0L\nI+7\nl.", "[5,0,7]");
    fails(b"S'\xe9'\n.", "a Python 2 string");
    fails(b"U\x01\xe9.", "a Python 2 string");
}

#[test]
fn converts_keys_as_json_dumps_does() {
    reads(b"}(K\x01K\x01Va\nK\x02K\x01K\x03NK\x04u.", r#"{"1":3,"a":2,"null":4}"#);
    reads(b"}(Va\nK\x01Vb\nK\x02Va\nK\x03u.", r#"{"a":3,"b":2}"#);
    reads(b"}F1e16\nNs\x89Ns.", r#"{"1e+16":null,"false":null}"#);
    // Keys that are equal only in JSON: the last one is kept too.
    reads(b"}K\x01K\x05sV1\nK\x06s.", r#"{"1":6}"#);
    fails(b"})Ns.", "a dict key that is a tuple");
    fails(b"}]Ns.", "must be hashable");
}

/// Pickles by CPython 3.11.7 of lists with one such object each.
#[test]
fn names_the_kind_that_it_refuses() {
    let bytes: [(&[u8], &str); 27] = [
        (b"(lp0\nc_codecs\nencode\np1\n(Vab\xff\np2\nVlatin1\np3\ntp4\nRp5\na.", "perhaps a bytes object"),
        (b"(lp0\nc__builtin__\nbytes\np1\n(tRp2\na.", "a bytes object"),
        (b"\x80\x04\x95\x0a\0\0\0\0\0\0\0]\x94C\x03ab\xff\x94a.", "a bytes object"),
        (b"B\0\0\0\0.", "a bytes object"),
        (b"\x8e\0\0\0\0\0\0\0\0.", "a bytes object"),
        (b"(lp0\nc__builtin__\nbytearray\np1\n(c_codecs\nencode\n.", "a bytearray object"),
        (b"\x80\x05\x95\x10\0\0\0\0\0\0\0]\x94\x96\x02\0\0\0\0\0\0\0ab\x94a.", "a bytearray object"),
        (b"\x80\x02]q\0c__builtin__\nset\nq\x01]q\x02K\x01a\x85q\x03Rq\x04a.", "contains a set,"),
        (b"\x80\x04\x95\x0a\0\0\0\0\0\0\0]\x94\x8f\x94(K\x01\x90a.", "contains a set,"),
        (b"(lp0\nc__builtin__\nfrozenset\np1\n((lp2\nI1\natp3\nRp4\na.", "a frozenset"),
        (b"\x80\x04\x95\x09\0\0\0\0\0\0\0]\x94(K\x01\x91\x94a.", "a frozenset"),
        (b"(lp0\nc__builtin__\ncomplex\np1\n(F0.0\nF1.0\ntp2\nRp3\na.", "a complex number"),
        (b"(lp0\ncdatetime\ndate\np1\n(c_codecs\nencode\n.", "an object of class datetime.date"),
        (
            b"\x80\x04\x95\x22\0\0\0\0\0\0\0]\x94\x8c\x07decimal\x94\x8c\x07Decimal\x94\x93\x94\x8c\x011\x94\x85\x94R\x94a.",
            "an object of class decimal.Decimal",
        ),
        (
            b"(lp0\nccopy_reg\n_reconstructor\np1\n(capp.jobs\nF\np2\nc__builtin__\nobject\np3\nNtp4\nRp5\na.",
            "an object of class app.jobs.F",
        ),
        (
            b"\x80\x04\x95\x22\0\0\0\0\0\0\0]\x94\x8c\x08app.jobs\x94\x8c\x01F\x94\x93\x94)\x81\x94}\x94\x8c\x01a\x94K\x01sba.",
            "an object of class app.jobs.F",
        ),
        (b"cos\nsystem\n(Vrm -rf /\ntR.", "os.system"),
        (b"(Vrm -rf /\nios\nsystem\n.", "os.system"),
        (b"ccopyreg\n_reconstructor\n)R.", "the result of a call"),
        (b"ccopyreg\n_reconstructor\n.", "a function of Python's copyreg module"),
        (b"}}b.", "an object with a state"),
        (b"(No.", "an object (opcode OBJ)"),
        (b"N)\x81.", "an object (opcode NEWOBJ)"),
        (b"N)}\x92.", "an object (opcode NEWOBJ_EX)"),
        (b"Psecret\n.", "a persistent id"),
        (b"\x82\x01.", "an object of a registered extension"),
        (b"\x97\x98.", "an out-of-band buffer"),
    ];
    for (pickle, part) in bytes {
        fails(pickle, part);
    }
    for float in ["nan", "inf", "-inf", "1e999"] {
        fails(format!("F{float}\n.").as_bytes(), "NaN or infinite");
    }
    fails(b"G\x7f\xf8\0\0\0\0\0\0.", "NaN or infinite");
}

#[test]
fn names_are_short_and_printable() {
    let found = decode(b"ca\x1b[31m\x07b\xff\nN\0 'x\".y\n").expect_err("it imports");
    assert_eq!(
        found,
        "unsupported pickle: it contains an object of class a31mb.Nx.y, which is not plain data"
    );
    let long = format!("c{}\n{}\n.", "m".repeat(100_000), "n".repeat(100_000));
    fails(long.as_bytes(), "an object of class mmm");
}

#[test]
fn refuses_invalid_pickles() {
    let invalid: [&[u8]; 32] = [
        b"",
        b".",
        b"(.",
        b"I1\n(.",
        b"a.",
        b"Na.",
        b"NNa.",
        b"]a.",
        b"](Na.",
        b"Ns.",
        b"NNNs.",
        b"}(Nu.",
        b"l.",
        b"e.",
        b"t.",
        b"\x85.",
        b"N\x86.",
        b"0.",
        b"1.",
        b"2.",
        b"p0\n.",
        b"g0\n.",
        b"h\0.",
        b"p-1\n.",
        b"I\n.",
        b"I010\n.",
        b"L0x10L\n.",
        b"F1_0\n.",
        b"V\\u12\n.",
        b"V\\U00110000\n.",
        b"X\x01\0\0\0\xff.",
        b"\xff",
    ];
    for pickle in invalid {
        fails(pickle, "invalid pickle");
    }
    fails(b"\x80\x06N.", "protocol must be at most 5");
    fails(b"Vno end of line", "ends early");
    fails(b"NN\x93.", "a class name must be a string");
}

#[test]
fn checks_every_length() {
    fails(b"X\xff\xff\xff\xffab.", "ends early");
    fails(b"T\xff\xff\xff\xffab.", "ends early");
    fails(b"\x8b\xff\xff\xff\x7fab.", "ends early");
    fails(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffab.", "ends early");
    fails(b"\x95\xff\xff\xff\xff\xff\xff\xff\xffN.", "ends early");
    reads(b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.", "null");
    reads(b"Np18446744073709551615\n.", "null");
}

#[test]
fn nesting_has_a_limit() {
    let tuples = |levels: usize| [&b")"[..], &vec![b'\x85'; levels - 1], b"."].concat();
    let deepest = decode(&tuples(MAX_DEPTH)).expect("this is within the limit");
    assert!(serde_json::from_str::<Value>(&deepest).is_ok());
    fails(&tuples(MAX_DEPTH + 1), "at most 127 levels");
    fails(&tuples(1 << 20), "at most 127 levels");
    let lists = [&b"(l".repeat(1 << 18)[..], &b"a".repeat((1 << 18) - 1), b"."].concat();
    fails(&lists, "at most 127 levels");
    let dicts = [&b"}K\x01".repeat(1 << 18)[..], b"N", &b"s".repeat(1 << 18), b"."].concat();
    fails(&dicts, "at most 127 levels");
}

#[test]
fn cycles_are_refused() {
    fails(b"]q\0h\0a.", "contains itself");
    fails(b"}q\0K\x01h\0s.", "contains itself");
    fails(b"]q\0h\0\x85a.", "contains itself");
    fails(b"]q\0]q\x01h\0ah\x01a.", "contains itself");
    fails(b"]2a.", "contains itself");
    // The same list twice side by side is no cycle.
    reads(b"]2\x86.", "[[],[]]");
}

#[test]
fn repetition_has_a_limit() {
    let text = [&b"X\0\x04\0\0"[..], &vec![b'x'; 1024]].concat();
    let laughs = [&text[..], &b"2\x86".repeat(100), b"."].concat();
    fails(&laughs, "64 MiB");
    let by_memo = [&text[..], b"q\0", &b"0(h\0h\0h\0h\0h\0h\0h\0h\0tq\0".repeat(40), b"."].concat();
    fails(&by_memo, "64 MiB");
    let as_keys = [&text[..], b"q\0", &b"}h\0".repeat(60), b"N", &b"s".repeat(60), b"."].concat();
    assert!(decode(&as_keys).is_ok());
}

#[test]
fn values_have_a_limit() {
    fails(&vec![b']'; MAX_VALUES + 1], "values");
    fails(&[&b"N"[..], &vec![b'\x94'; MAX_VALUES + 1]].concat(), "values");
}

/// Each of these pickles has some megabytes. It would take minutes if work were repeated for each reference.
/// The test measures the time of its own thread, because a busy machine takes longer for the same work.
#[test]
fn time_grows_with_the_size_of_the_pickle_only() {
    let long = [&b"X\0\0\x10\0"[..], &vec![b' '; 1 << 20], b"q\0"].concat();
    let begun = ThreadTime::now();
    fails(&[&long[..], &b"}h\0Ns0".repeat(100_000)].concat(), "ends early");
    fails(&[&long[..], b"}", &b"h\0Ns".repeat(100_000)].concat(), "ends early");
    let globals = b"X\x07\0\0\0copyregq\x01";
    fails(&[&long[..], globals, &b"h\x01h\0\x930".repeat(100_000)].concat(), "ends early");
    fails(&[&b"N".repeat(1 << 20)[..], &b"(l0".repeat(100_000)].concat(), "ends early");
    fails(&[&b"N".repeat(1 << 20)[..], &b"0".repeat(1 << 20), &b"(l0".repeat(100_000)].concat(), "ends");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn integers_have_a_limit() {
    let limit = "9".repeat(MAX_INT_DIGITS);
    reads(format!("L{limit}L\n.").as_bytes(), &limit);
    fails(format!("L{limit}0L\n.").as_bytes(), "4300 digits");
    fails(format!("I-{limit}0\n.").as_bytes(), "4300 digits");
    fails(&[&b"\x8b\0\0\x10\0"[..], &vec![1; 1 << 20], b"."].concat(), "4300 digits");
    fails(&[&b"\x8b\xfb\x06\0\0"[..], &vec![1; 1787], b"."].concat(), "4300 digits");
    assert_eq!(
        decode(&[&b"\x8b\xfa\x06\0\0"[..], &vec![1; 1786], b"."].concat()).map(|it| it.len()),
        Ok(4299)
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let text = || prop::collection::vec(any::<char>(), 0..12).prop_map(String::from_iter);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-1000..1000, -20..20)
            .prop_map(|(digits, power)| Value::from(f64::from(digits) * 10_f64.powi(power))),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::vec((text(), inner), 0..8).prop_map(|all| Value::from(Map::from_iter(all))),
        ]
    })
}

/// Generates bytes that are mostly opcodes with valid arguments, so that reading gets far.
fn any_program() -> impl Strategy<Value = Vec<u8>> {
    let pieces: Vec<&[u8]> = vec![
        b"(",
        b"0",
        b"1",
        b"2",
        b"p0\n",
        b"q\x01",
        b"\x94",
        b"g0\n",
        b"h\x01",
        b"N",
        b"\x88",
        b"I7\n",
        b"K\x01",
        b"L9L\n",
        b"F1.5\n",
        b"Va\n",
        b"Vb\n",
        b"X\x01\0\0\0c",
        b"]",
        b"(l",
        b"a",
        b"e",
        b")",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"}",
        b"d",
        b"s",
        b"u",
        b"ccopyreg\nx\n",
        b"\x93",
        b"R",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..60)
        .prop_map(|all| [&all.concat()[..], b"."].concat())
}

#[track_caller]
fn is_json_or_a_short_error(pickle: &[u8]) {
    let begun = ThreadTime::now();
    match decode(pickle) {
        Ok(json) => assert!(serde_json::from_str::<&serde_json::value::RawValue>(&json).is_ok(), "{json}"),
        Err(text) => assert!(text.chars().count() < 300 && !text.contains(char::is_control), "{text}"),
    }
    assert!(begun.elapsed() < Duration::from_secs(30));
}

proptest! {
    #[test]
    fn any_bytes_decode_or_fail(pickle in prop::collection::vec(any::<u8>(), 0..200)) {
        is_json_or_a_short_error(&pickle);
    }

    #[test]
    fn any_opcodes_decode_or_fail(pickle in any_program()) {
        is_json_or_a_short_error(&pickle);
    }

    #[test]
    fn any_damaged_pickle_decodes_or_fails(which in 0..6_usize, at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut pickle = hex(fixtures::PICKLES[which]);
        let at = at.index(pickle.len());
        is_json_or_a_short_error(&pickle[..at]);
        pickle[at] = to;
        is_json_or_a_short_error(&pickle);
    }

    #[test]
    fn any_text_decodes_or_fails(stored in any::<String>(), json in any::<String>()) {
        let _ = (Pickle.decode(&stored), Pickle.encode(json));
    }

    #[test]
    fn any_value_round_trips(value in any_json()) {
        let json = value.to_string();
        let stored = encode(&json).expect("it is plain");
        let back = Pickle.decode(&stored).expect("it was written here");
        let parse = |text: &str| serde_json::from_str::<Value>(text).expect("it is JSON");
        prop_assert_eq!(parse(&back), parse(&json));
    }

    #[test]
    fn any_binary_integer_is_right(number in any::<i128>(), shift in 0..120_u32) {
        let number = number >> shift;
        let pickle = [&b"\x8a\x10"[..], &number.to_le_bytes(), b"."].concat();
        prop_assert_eq!(decode(&pickle), Ok(number.to_string()));
    }
}
