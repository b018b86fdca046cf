//! Makes a failing schedule short.

use super::plan::Plan;

/// The acts of a schedule that fails as `fails` says, as few as can be found in `tries` tries: leaves out halves, then
/// quarters, and so on, as long as it still fails.
pub(super) fn shrink(plan: &Plan, tries: u32, fails: impl Fn(&Plan) -> bool) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..plan.acts.len()).collect();
    let mut left = tries;
    let mut size = kept.len().div_ceil(2);
    while size > 0 {
        let mut begin = 0;
        let mut shorter = false;
        while begin < kept.len() {
            let end = (begin + size).min(kept.len());
            let without: Vec<usize> = kept[..begin].iter().chain(&kept[end..]).copied().collect();
            if left == 0 {
                return kept;
            }
            left -= 1;
            if fails(&plan.only(&without)) {
                kept = without;
                shorter = true;
            } else {
                begin = end;
            }
        }
        if size > 1 || !shorter {
            size /= 2;
        }
    }
    kept
}

#[test]
fn what_does_not_matter_is_left_out() {
    let plan = Plan::of(1);
    let kept = shrink(&plan, 1000, |plan| {
        let all = Plan::of(1).acts;
        [3, 17].iter().all(|wanted| plan.acts.contains(&all[*wanted]))
    });
    assert_eq!(kept, [3, 17]);
}

#[test]
fn it_gives_up_in_time() {
    let plan = Plan::of(1);
    assert_eq!(shrink(&plan, 0, |_| true).len(), plan.acts.len());
}
