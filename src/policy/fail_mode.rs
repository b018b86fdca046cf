//! When a fail point fails what it concerns: the `mode` of `configureFailPoint`.

use bson::raw::RawBsonRef;

const WRONG: &str = "'mode' must be 'off', 'alwaysOn', '{times:n}' or '{skip:n}' here";

/// When it does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// Never.
    #[default]
    Off,
    /// Each time.
    Always,
    /// So often.
    Times(i64),
    /// Each time after so many.
    Skip(i64),
}

impl Mode {
    pub(super) fn parse(mode: Option<RawBsonRef<'_>>) -> Result<Self, String> {
        match mode {
            Some(RawBsonRef::String("off")) => Ok(Self::Off),
            Some(RawBsonRef::String("alwaysOn")) => Ok(Self::Always),
            Some(RawBsonRef::Document(mode)) => {
                let number = |name: &str| mode.get(name).ok().flatten().and_then(whole);
                match (number("times"), number("skip")) {
                    (Some(0), None) => Ok(Self::Off),
                    (Some(times), None) if times > 0 => Ok(Self::Times(times)),
                    (None, Some(skip)) if skip >= 0 => Ok(Self::Skip(skip)),
                    _ => Err(WRONG.to_owned()),
                }
            }
            _ => Err(WRONG.to_owned()),
        }
    }

    /// Whether one of the next `count` fails; counts them.
    pub(super) fn enter(&mut self, count: i64) -> bool {
        match self {
            Self::Off => false,
            Self::Always => true,
            Self::Times(left) => {
                *left -= count;
                if *left <= 0 {
                    *self = Self::Off;
                }
                true
            }
            Self::Skip(left) if *left >= count => {
                *left -= count;
                false
            }
            Self::Skip(left) => {
                *left = 0;
                true
            }
        }
    }
}

/// A whole number of any type.
pub(super) fn whole(value: RawBsonRef<'_>) -> Option<i64> {
    match value {
        RawBsonRef::Int32(number) => Some(number.into()),
        RawBsonRef::Int64(number) => Some(number),
        RawBsonRef::Double(number) if number.fract() == 0.0 && number.abs() < 9e15 => {
            format!("{number:.0}").parse().ok()
        }
        _ => None,
    }
}
