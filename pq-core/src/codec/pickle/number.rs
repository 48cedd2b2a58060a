//! Numbers: conversion between Python's and JSON's text.

use super::{CodecError, MAX_INT_DIGITS, invalid, too_many_digits, unsupported};

/// A power of ten whose square fits in a `u64`.
const BILLION: u64 = 1_000_000_000;

/// Converts an integer in decimal text to JSON.
///
/// Python also reads other bases, underscores and spaces here, but never writes them.
pub(super) fn integer(text: &[u8]) -> Result<String, CodecError> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] | digits => (false, digits),
    };
    let well_formed = match digits {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !well_formed {
        return Err(invalid("an integer must be decimal digits"));
    }
    if digits.len() > MAX_INT_DIGITS {
        return Err(too_many_digits());
    }
    let sign = if negative && digits != b"0" { "-" } else { "" };
    Ok(format!("{sign}{}", String::from_utf8_lossy(digits)))
}

/// Converts an integer in little-endian two's complement to JSON. No bytes are zero.
pub(super) fn binary_integer(bytes: &[u8]) -> Result<String, CodecError> {
    // 12 bits hold at least three digits, so longer integers are refused before the conversion.
    if bytes.len() > MAX_INT_DIGITS / 2 {
        return Err(too_many_digits());
    }
    let negative = bytes.last().is_some_and(|top| top & 0x80 != 0);
    let magnitude = if negative { negated(bytes) } else { bytes.to_vec() };
    let mut limbs: Vec<u64> = Vec::new();
    for chunk in magnitude.chunks(4).rev() {
        let mut carry = chunk.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        for limb in &mut limbs {
            carry += *limb << 32;
            *limb = carry % BILLION;
            carry /= BILLION;
        }
        while carry > 0 {
            limbs.push(carry % BILLION);
            carry /= BILLION;
        }
    }
    let mut text = String::from(if negative { "-" } else { "" });
    text.push_str(&limbs.pop().unwrap_or(0).to_string());
    for limb in limbs.iter().rev() {
        text.push_str(&format!("{limb:09}"));
    }
    integer(text.as_bytes())
}

/// Negates an integer in little-endian two's complement.
fn negated(bytes: &[u8]) -> Vec<u8> {
    let mut carry = true;
    let negate = |byte: &u8| {
        let (sum, over) = (!byte).overflowing_add(u8::from(carry));
        carry = over;
        sum
    };
    bytes.iter().map(negate).collect()
}

/// Parses the text of a float, which is JSON except for NaN and the infinities.
pub(super) fn parse_float(text: &[u8]) -> Result<f64, CodecError> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| invalid("a float must be a number"))
}

/// Formats a float as Python's `repr` does. The result is JSON, and is used for dict keys too.
pub(super) fn float(number: f64) -> Result<String, CodecError> {
    if !number.is_finite() {
        return Err(unsupported("a float that is NaN or infinite"));
    }
    // Rust uses exponents for the same numbers as Python, but without a plus or a leading zero.
    let text = format!("{number:?}");
    let Some((mantissa, exponent)) = text.split_once('e') else {
        return Ok(text);
    };
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    Ok(format!("{mantissa}e{sign}{digits:0>2}"))
}
