//! Whether a difference between both sides is real, from looks at a key that goes on changing.

/// A hash of a document's bytes; `None` where there is no document.
pub type Content = Option<u128>;

/// A second look at a key, the mirror read first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Second {
    /// What the authority's majority has.
    pub authority: Content,
    /// What the mirror's majority has.
    pub mirror: Content,
    /// The same cluster is its authority as at the first look, without a fence in between.
    pub same_authority: bool,
    /// Between both looks, everything on the authority up to the first was worked off.
    pub frontier_passed: bool,
}

/// How a real difference looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// The authority has a document that the mirror lacks.
    Missing,
    /// The mirror has a document that the authority has not.
    Extra,
    /// Both have it, with other bytes.
    Content,
}

impl Difference {
    /// As reports name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing_on_mirror",
            Self::Extra => "extra_on_mirror",
            Self::Content => "content",
        }
    }
}

/// What two looks say about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The mirror has what it must have.
    Equal,
    /// It differs, and nothing is on its way that would make it equal.
    Real(Difference),
    /// It cannot be told yet.
    Again,
}

/// Judges a key from what the authority had at the first look and from the second look.
///
/// A mirror that has the authority's state of the first look, while the authority has gone on, is as current
/// as the frontier says: that is no difference.
#[must_use]
pub fn judge(first: Content, second: Second) -> Verdict {
    if !second.same_authority {
        return Verdict::Again;
    }
    if second.mirror == second.authority {
        return Verdict::Equal;
    }
    if !second.frontier_passed {
        return Verdict::Again;
    }
    if second.authority != first {
        return if second.mirror == first { Verdict::Equal } else { Verdict::Again };
    }
    Verdict::Real(match (second.authority, second.mirror) {
        (Some(_), None) => Difference::Missing,
        (None, _) => Difference::Extra,
        (Some(_), Some(_)) => Difference::Content,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(authority: Content, mirror: Content) -> Second {
        Second { authority, mirror, same_authority: true, frontier_passed: true }
    }

    #[test]
    fn a_difference_that_stays_is_real() {
        assert_eq!(judge(Some(1), second(Some(1), Some(2))), Verdict::Real(Difference::Content));
        assert_eq!(judge(Some(1), second(Some(1), None)), Verdict::Real(Difference::Missing));
        assert_eq!(judge(None, second(None, Some(2))), Verdict::Real(Difference::Extra));
    }

    #[test]
    fn what_has_become_equal_is_none() {
        assert_eq!(judge(Some(1), second(Some(2), Some(2))), Verdict::Equal);
        assert_eq!(judge(Some(1), second(None, None)), Verdict::Equal);
        let early = Second { frontier_passed: false, ..second(Some(1), Some(1)) };
        assert_eq!(judge(Some(1), early), Verdict::Equal);
    }

    #[test]
    fn a_changing_authority_is_looked_at_again() {
        assert_eq!(judge(Some(1), second(Some(2), Some(3))), Verdict::Again);
        assert_eq!(judge(Some(1), second(None, Some(3))), Verdict::Again);
        // The mirror is where the authority was at the first look: it follows.
        assert_eq!(judge(Some(1), second(Some(2), Some(1))), Verdict::Equal);
    }

    #[test]
    fn nothing_counts_before_the_frontier_has_passed() {
        let early = Second { frontier_passed: false, ..second(Some(1), Some(2)) };
        assert_eq!(judge(Some(1), early), Verdict::Again);
    }

    #[test]
    fn nothing_counts_across_a_move() {
        for mirror in [Some(1), Some(2), None] {
            let moved = Second { same_authority: false, ..second(Some(1), mirror) };
            assert_eq!(judge(Some(1), moved), Verdict::Again);
        }
    }
}
