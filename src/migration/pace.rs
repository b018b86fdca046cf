//! Whether a stream is caught up with, and when: from how far behind it was and how much was followed over the
//! last half a minute.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::number::grouped;
use crate::model::side::{PerSide, Side};

/// What is looked back on.
const WINDOW: Duration = Duration::from_secs(30);
/// The least that tells whether a stream is being caught up with.
const LEAST: Duration = Duration::from_secs(5);
/// A stream that is closer than this, in seconds, is level: lag is measured in whole seconds.
const LEVEL: f64 = 5.0;

/// One look at a stream.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    lag: f64,
    followed: u64,
}

/// What is known of one stream's lag.
#[derive(Debug, Default)]
pub struct Pace(VecDeque<Sample>);

/// What becomes of a stream's lag if everything goes on as it does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Forecast {
    /// It is level in so many seconds.
    Level(f64),
    /// It never is: changes are made faster than they are followed.
    Never {
        /// Changes made each second.
        made: f64,
        /// Changes followed each second.
        followed: f64,
    },
}

impl Pace {
    /// Adds a look: so many seconds behind (`None`: not known), so many changes followed since the start. To
    /// be called several times each second.
    pub fn sample(&mut self, now: Duration, lag: Option<f64>, followed: u64) {
        let Some(lag) = lag else { return self.0.clear() };
        // How far a stream is behind is told when it gets on. A look at what was told before says nothing new.
        let is_news = |last: &Sample| last.lag != lag || last.followed != followed;
        if self.0.back().is_none_or(is_news) {
            self.0.push_back(Sample { at: now, lag, followed });
        }
        // One that is older than the window stays: it is the window's beginning.
        while self.0.get(1).is_some_and(|second| now.saturating_sub(second.at) >= WINDOW) {
            self.0.pop_front();
        }
        if self.0.back().is_some_and(|last| now.saturating_sub(last.at) >= WINDOW) {
            self.0.clear();
        }
    }

    /// What becomes of it; `None` while that is not known, or when it is level.
    #[must_use]
    pub fn forecast(&self) -> Option<Forecast> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        let span = last.at.saturating_sub(first.at);
        if last.lag <= LEVEL || span < LEAST {
            return None;
        }
        // Seconds of lag gained each second.
        let growth = self.growth();
        if growth < 0.0 {
            return Some(Forecast::Level(last.lag / -growth));
        }
        let stays_behind = span >= WINDOW && self.0.iter().all(|sample| sample.lag > LEVEL);
        let followed = grows(first.followed, last.followed) / span.as_secs_f64();
        // What was followed in a second is what was made in this much of one.
        let got_on = 1.0 - growth;
        (stays_behind && followed > 0.0 && got_on > 0.0)
            .then(|| Forecast::Never { made: followed / got_on, followed })
    }

    /// The slope of the line through all samples: one by one they jump, as batches are worked off.
    #[expect(clippy::cast_precision_loss, reason = "a few hundred samples")]
    fn growth(&self) -> f64 {
        let count = self.0.len() as f64;
        let at = |sample: &Sample| sample.at.as_secs_f64();
        let middle = self.0.iter().map(at).sum::<f64>() / count;
        let mean = self.0.iter().map(|sample| sample.lag).sum::<f64>() / count;
        let (mut with, mut of) = (0.0, 0.0);
        for sample in &self.0 {
            let from_middle = at(sample) - middle;
            with += from_middle * (sample.lag - mean);
            of += from_middle * from_middle;
        }
        if of > 0.0 { with / of } else { 0.0 }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn grows(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64
}

/// Seconds until both streams are level; `None` when that is not known, or never.
#[must_use]
pub fn remaining(forecasts: &PerSide<Option<Forecast>>) -> Option<f64> {
    let each = Side::BOTH.into_iter().filter_map(|side| *forecasts.get(side));
    each.map(|forecast| match forecast {
        Forecast::Level(seconds) => Some(seconds),
        Forecast::Never { .. } => None,
    })
    .reduce(|one, other| Some(one?.max(other?)))
    .flatten()
}

/// In words, which streams are never caught up with.
#[must_use]
pub fn note(forecasts: &PerSide<Option<Forecast>>) -> Option<String> {
    let never = |side| match *forecasts.get(side) {
        Some(Forecast::Never { made, followed }) => Some(format!(
            "following {side} will never catch up: about {} changes are made each second and {} are followed",
            whole(made),
            whole(followed)
        )),
        _ => None,
    };
    let notes: Vec<String> = Side::BOTH.into_iter().filter_map(never).collect();
    (!notes.is_empty()).then(|| notes.join("; "))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rates of changes")]
fn whole(rate: f64) -> String {
    grouped(rate.round().max(0.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks five times a second for `seconds`: how far it is behind and what was followed, by time.
    fn pace(seconds: u32, lag: impl Fn(f64) -> f64, followed: impl Fn(f64) -> f64) -> Pace {
        let mut pace = Pace::default();
        look(&mut pace, 0, seconds, lag, followed);
        pace
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers")]
    fn look(pace: &mut Pace, from: u32, to: u32, lag: impl Fn(f64) -> f64, followed: impl Fn(f64) -> f64) {
        for fifth in from * 5..=to * 5 {
            let at = f64::from(fifth) / 5.0;
            pace.sample(Duration::from_secs_f64(at), Some(lag(at).trunc()), followed(at) as u64);
        }
    }

    fn says(pace: &Pace) -> String {
        note(&PerSide { old: pace.forecast(), new: None }).unwrap_or_default()
    }

    #[test]
    fn a_shrinking_lag_tells_when_it_is_gone() {
        let pace = pace(20, |at| 120.0 - at * 2.0, |at| at * 3_000.0);
        let Some(Forecast::Level(left)) = pace.forecast() else { panic!("{:?}", pace.forecast()) };
        assert!((38.0..42.0).contains(&left), "{left}");
        let both = PerSide { old: pace.forecast(), new: Some(Forecast::Level(99.0)) };
        assert_eq!((remaining(&both), note(&both)), (Some(99.0), None));
    }

    #[test]
    fn a_growing_lag_tells_both_rates() {
        // In each second a tenth of one is lost: of 1,234 changes 1,110.6 are followed.
        let pace = pace(40, |at| 20.0 + at / 10.0, |at| at * 1_110.6);
        let Some(Forecast::Never { made, followed }) = pace.forecast() else {
            panic!("{:?}", pace.forecast())
        };
        assert!(
            (1_200.0..1_270.0).contains(&made) && (1_105.0..1_116.0).contains(&followed),
            "{made} {followed}"
        );
        let forecasts = PerSide { old: pace.forecast(), new: Some(Forecast::Level(9.0)) };
        assert_eq!(remaining(&forecasts), None, "what never ends has no time left");
    }

    #[test]
    fn a_stream_that_is_left_behind_is_named() {
        let never = Some(Forecast::Never { made: 1_234.4, followed: 1_099.6 });
        let text = "about 1,234 changes are made each second and 1,100 are followed";
        assert_eq!(
            note(&PerSide { old: never, new: None }).as_deref(),
            Some(&*format!("following old will never catch up: {text}"))
        );
        let both = note(&PerSide { old: never, new: never }).unwrap_or_default();
        assert_eq!(both.matches(text).count(), 2, "{both}");
    }

    #[test]
    fn a_lag_that_stays_never_ends_either() {
        assert!(says(&pace(40, |_| 60.0, |at| at * 500.0)).contains("about 500 changes are made"));
    }

    #[test]
    fn nothing_is_said_before_it_is_known() {
        assert_eq!(Pace::default().forecast(), None);
        assert_eq!(pace(3, |at| 100.0 - at, |at| at).forecast(), None, "too short");
        assert_eq!(pace(20, |at| 20.0 + at, |at| at * 100.0).forecast(), None, "less than the whole window");
        assert_eq!(pace(60, |_| 1.0, |at| at * 100.0).forecast(), None, "level");
        assert_eq!(pace(40, |at| at / 3.0, |at| at * 100.0).forecast(), None, "it was level a moment ago");
        assert_eq!(pace(40, |_| 60.0, |_| 7.0).forecast(), None, "nothing was told since");
        assert_eq!(pace(40, |at| 60.0 + at / 2.0, |_| 7.0).forecast(), None, "nothing was followed");
    }

    #[test]
    fn what_is_long_ago_or_not_known_is_forgotten() {
        let mut pace = pace(40, |at| 20.0 + at, |at| at * 100.0);
        look(&mut pace, 40, 75, |at| 60.0 - (at - 40.0), |at| at * 100.0);
        assert!(matches!(pace.forecast(), Some(Forecast::Level(_))), "{:?}", pace.forecast());
        pace.sample(Duration::from_secs(76), None, 0);
        assert_eq!(pace.forecast(), None);
        look(&mut pace, 80, 100, |at| 200.0 - at, |at| at);
        assert!(pace.forecast().is_some());
        pace.sample(Duration::from_secs(140), Some(100.0), 100);
        assert_eq!(pace.forecast(), None, "nothing was told for a whole window");
    }
}
