//! Shares of a whole, in tenths of a percent.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What a share must be.
const RANGE: &str = "a number from 0 to 100 with at most one decimal";

/// A share, from nothing to all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u16);

impl Percent {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// All.
    pub const ALL: Self = Self(1000);

    /// So many whole percent; more than 100 is all.
    #[must_use]
    pub const fn whole(percent: u8) -> Self {
        let percent = if percent > 100 { 100 } else { percent };
        Self(percent as u16 * 10)
    }

    /// So many tenths; more than 1000 is all.
    #[must_use]
    pub fn of_tenths(tenths: u32) -> Self {
        Self(u16::try_from(tenths.min(1000)).unwrap_or(1000))
    }

    /// How many tenths of a percent it is.
    #[must_use]
    pub const fn tenths(self) -> u16 {
        self.0
    }

    /// Neither nothing nor all.
    #[must_use]
    pub fn is_part(self) -> bool {
        self != Self::ZERO && self != Self::ALL
    }
}

/// # Errors
/// In words, what it must be.
impl TryFrom<f64> for Percent {
    type Error = String;

    fn try_from(value: f64) -> Result<Self, String> {
        let tenths = (value * 10.0).round();
        if !(0.0..=1000.0).contains(&tenths) || (tenths / 10.0 - value).abs() > 1e-9 {
            return Err(format!("percent must be {RANGE}, not {value}"));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1000")]
        Ok(Self(tenths as u16))
    }
}

impl From<u8> for Percent {
    fn from(percent: u8) -> Self {
        Self::whole(percent)
    }
}

impl From<Percent> for f64 {
    fn from(percent: Percent) -> Self {
        Self::from(percent.0) / 10.0
    }
}

impl PartialEq<u8> for Percent {
    fn eq(&self, whole: &u8) -> bool {
        self.0 == u16::from(*whole) * 10
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let value: f64 = text.trim().parse().map_err(|_| format!("percent must be {RANGE}"))?;
        Self::try_from(value)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 10, self.0 % 10) {
            (whole, 0) => write!(f, "{whole}"),
            (whole, tenth) => write!(f, "{whole}.{tenth}"),
        }
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 % 10 {
            0 => serializer.serialize_u16(self.0 / 10),
            _ => serializer.serialize_f64(f64::from(*self)),
        }
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = f64::deserialize(deserializer)?;
        Self::try_from(value).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenths_come_and_go_as_numbers() {
        for (text, tenths) in [("0", 0), ("0.1", 1), ("5", 50), ("12.5", 125), ("99.9", 999), ("100", 1000)] {
            let percent: Percent = text.parse().unwrap();
            assert_eq!((percent.tenths(), percent.to_string().as_str()), (tenths, text));
            assert_eq!(serde_json::to_string(&percent).unwrap(), text);
            assert_eq!(serde_json::from_str::<Percent>(text).unwrap(), percent);
            let stored = bson::serialize_to_bson(&percent).unwrap();
            assert_eq!(bson::deserialize_from_bson::<Percent>(stored).unwrap(), percent);
        }
        assert_eq!(serde_json::from_str::<Percent>("5.0").unwrap(), 5);
    }

    #[test]
    fn what_is_no_share_says_what_one_is() {
        for wrong in ["-1", "100.1", "0.05", "NaN", "1e3", "x", ""] {
            assert!(wrong.parse::<Percent>().unwrap_err().contains("0 to 100"), "{wrong}");
        }
        assert!(serde_json::from_str::<Percent>("101").unwrap_err().to_string().contains("0 to 100"));
    }
}
