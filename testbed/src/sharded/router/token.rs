//! Resume tokens: key strings in hexadecimal, which sort as the events do, first of all by their time.

use bson::{Document, Timestamp};

use super::failure::Failure;

/// Type of the time at the beginning, then seconds and increment in 8 digits each.
const TIME: &str = "82";
const TIME_END: usize = 18;

/// The text of a resume token.
pub(super) fn data_of(token: &Document) -> Result<String, Failure> {
    let invalid = || Failure::new(260, "InvalidResumeToken", format!("invalid resume token: {token}"));
    let data = token.get_str("_data").map_err(|_| invalid())?;
    let hexadecimal = data.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !hexadecimal || data.len() <= TIME_END || time_of(data).is_none() {
        return Err(invalid());
    }
    Ok(data.to_ascii_uppercase())
}

/// The cluster time of the event that a token belongs to.
pub(super) fn time_of(data: &str) -> Option<Timestamp> {
    let digits = data.strip_prefix(TIME)?;
    let part = |from: usize| u32::from_str_radix(digits.get(from..from + 8)?, 16).ok();
    Some(Timestamp { time: part(0)?, increment: part(8)? })
}

/// Whether the token is that of an `invalidate`: behind the time stand three small numbers (version, kind of
/// token, place in a transaction) and then a boolean that says so.
pub(super) fn is_invalidate(data: &str) -> bool {
    let mut rest = data.get(TIME_END..).unwrap_or_default();
    for _ in 0..3 {
        // A key string's positive number says its length in bytes: 2B one, 2C two and so on; 29 is zero.
        let Some(kind) = rest.get(..2).and_then(|kind| u8::from_str_radix(kind, 16).ok()) else {
            return false;
        };
        let length = if kind == 0x29 { 0 } else { usize::from(kind.saturating_sub(0x2A)) };
        rest = rest.get(2 + 2 * length..).unwrap_or_default();
    }
    rest.starts_with("6F")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    const EVENT: &str = "8264A1B2C3000000072B022C0100296E5A1004";

    #[test]
    fn the_time_of_a_token() {
        assert_eq!(time_of(EVENT), Some(Timestamp { time: 0x64A1_B2C3, increment: 7 }));
        assert_eq!(data_of(&doc! {"_data": EVENT}).unwrap(), EVENT);
        assert_eq!(data_of(&doc! {"_data": "8263"}).unwrap_err().code(), 260);
        assert!(data_of(&doc! {}).is_err());
    }

    #[test]
    fn invalidates_are_told_apart() {
        assert!(!is_invalidate(EVENT));
        assert!(is_invalidate(&EVENT.replace("6E5A", "6F5A")));
        assert!(!is_invalidate("82"));
    }
}
