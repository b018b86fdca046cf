//! Whether a difference between both sides is real, from looks at a key that goes on changing.

/// A hash of a document's bytes; `None` where there is no document.
pub type Content = Option<u128>;

/// What both sides had at one look, the mirror read first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// What the authority's majority has.
    pub authority: Content,
    /// What the mirror's majority has.
    pub mirror: Content,
}

/// What happened between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Between {
    /// The same cluster is the key's authority at both, without a fence in between.
    pub same_authority: bool,
    /// Everything on the authority up to the first look was worked off.
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

/// Judges a key from two looks.
///
/// A mirror that has the authority's state of the first look, while the authority has gone on, is as current
/// as the frontier says: that is no difference. One is real only if neither side has changed: a document that
/// goes to and fro between two states would else look like one. Even so it can look the same twice by chance,
/// so the caller asks for several such verdicts in a row.
#[must_use]
pub fn judge(first: Look, second: Look, between: Between) -> Verdict {
    if !between.same_authority {
        return Verdict::Again;
    }
    if second.mirror == second.authority {
        return Verdict::Equal;
    }
    if !between.frontier_passed {
        return Verdict::Again;
    }
    if second.authority != first.authority && second.mirror == first.authority {
        return Verdict::Equal;
    }
    if second != first {
        return Verdict::Again;
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

    const PASSED: Between = Between { same_authority: true, frontier_passed: true };

    const fn look(authority: Content, mirror: Content) -> Look {
        Look { authority, mirror }
    }

    #[test]
    fn a_difference_that_stays_is_real() {
        for (authority, mirror, kind) in [
            (Some(1), Some(2), Difference::Content),
            (Some(1), None, Difference::Missing),
            (None, Some(2), Difference::Extra),
        ] {
            let same = look(authority, mirror);
            assert_eq!(judge(same, same, PASSED), Verdict::Real(kind));
        }
    }

    #[test]
    fn what_has_become_equal_is_none() {
        let differed = look(Some(1), Some(2));
        assert_eq!(judge(differed, look(Some(3), Some(3)), PASSED), Verdict::Equal);
        assert_eq!(judge(differed, look(None, None), PASSED), Verdict::Equal);
        let early = Between { frontier_passed: false, ..PASSED };
        assert_eq!(judge(differed, look(Some(1), Some(1)), early), Verdict::Equal);
    }

    #[test]
    fn what_changes_is_looked_at_again() {
        let differed = look(Some(1), Some(9));
        assert_eq!(judge(differed, look(Some(2), Some(9)), PASSED), Verdict::Again);
        assert_eq!(judge(differed, look(None, Some(9)), PASSED), Verdict::Again);
        // It went away and came back as it was; the mirror is on its way.
        assert_eq!(judge(differed, look(Some(1), None), PASSED), Verdict::Again);
        // The mirror is where the authority was at the first look: it follows.
        assert_eq!(judge(differed, look(Some(2), Some(1)), PASSED), Verdict::Equal);
    }

    #[test]
    fn nothing_counts_before_the_frontier_has_passed() {
        let same = look(Some(1), Some(2));
        assert_eq!(judge(same, same, Between { frontier_passed: false, ..PASSED }), Verdict::Again);
    }

    #[test]
    fn nothing_counts_across_a_move() {
        for mirror in [Some(1), Some(2), None] {
            let same = look(Some(1), mirror);
            assert_eq!(judge(same, same, Between { same_authority: false, ..PASSED }), Verdict::Again);
        }
    }
}
