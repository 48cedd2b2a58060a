//! Numbers as Python and JSON write them.

use super::{CodecError, MAX_INT_DIGITS, damaged, refused, too_many_digits};

/// A base that JSON's digits come in directly, and that two of multiply within a `u64`.
const BILLION: u64 = 1_000_000_000;

/// The JSON of an integer that a pickle has as decimal text.
///
/// Python also takes other bases, underscores and spaces there, but never writes them.
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
        return Err(damaged("an integer is not decimal digits"));
    }
    if digits.len() > MAX_INT_DIGITS {
        return Err(too_many_digits());
    }
    let sign = if negative && digits != b"0" { "-" } else { "" };
    Ok(format!("{sign}{}", String::from_utf8_lossy(digits)))
}

/// The JSON of an integer of little-endian bytes in two's complement; of none, it is zero.
pub(super) fn binary_integer(bytes: &[u8]) -> Result<String, CodecError> {
    // 12 bits hold at least three digits, so longer ones need not be converted to be refused.
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

/// Minus the number of these little-endian bytes in two's complement.
fn negated(bytes: &[u8]) -> Vec<u8> {
    let mut carry = true;
    let negate = |byte: &u8| {
        let (sum, over) = (!byte).overflowing_add(u8::from(carry));
        carry = over;
        sum
    };
    bytes.iter().map(negate).collect()
}

/// The number of a float's text, which Python writes as JSON does but for NaN and the infinities.
pub(super) fn parse_float(text: &[u8]) -> Result<f64, CodecError> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| damaged("a float is not a number's text"))
}

/// What Python's `repr` gives, which is JSON, and which is what its dict keys become there.
pub(super) fn float(number: f64) -> Result<String, CodecError> {
    if !number.is_finite() {
        return Err(refused("a float that is NaN or infinite"));
    }
    // Rust turns to exponents where Python does, and writes them without a plus or a leading zero.
    let text = format!("{number:?}");
    let Some((mantissa, exponent)) = text.split_once('e') else {
        return Ok(text);
    };
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    Ok(format!("{mantissa}e{sign}{digits:0>2}"))
}
