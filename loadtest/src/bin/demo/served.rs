//! Which cluster served how much, by the proxy's own metrics.

use std::collections::HashMap;

/// Operations that ended, by class and cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Served(HashMap<(String, String), u64>);

const NAME: &str = "reshard_operations_total{";

impl Served {
    pub(crate) fn parse(metrics: &str) -> Self {
        let mut served = HashMap::new();
        for line in metrics.lines().filter_map(|line| line.strip_prefix(NAME)) {
            let Some((labels, value)) = line.split_once('}') else { continue };
            let label = |name: &str| {
                let pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
                pairs
                    .filter(|(key, _)| *key == name)
                    .map(|(_, value)| value.trim_matches('"').to_owned())
                    .next()
            };
            if let (Some(class), Some(cluster), Ok(value)) =
                (label("class"), label("cluster"), value.trim().parse::<u64>())
            {
                *served.entry((class, cluster)).or_default() += value;
            }
        }
        Self(served)
    }

    fn of(&self, class: &str, cluster: &str) -> u64 {
        self.0.get(&(class.to_owned(), cluster.to_owned())).copied().unwrap_or_default()
    }

    /// How many operations of a class were served since `before`, by old and by new.
    pub(crate) fn since(&self, before: &Self, class: &str) -> (u64, u64) {
        let of = |cluster| self.of(class, cluster).saturating_sub(before.of(class, cluster));
        (of("old"), of("new"))
    }
}

/// The second of two as percentage of both.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn share((old, new): (u64, u64)) -> f64 {
    if old + new > 0 { new as f64 * 100.0 / (old + new) as f64 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read() {
        let text = |old: u32, new: u32| {
            format!(
                "# TYPE reshard_operations_total counter\n\
                 reshard_operations_total{{class=\"read\",cluster=\"old\",outcome=\"ok\"}} {old}\n\
                 reshard_operations_total{{class=\"read\",cluster=\"new\",outcome=\"ok\"}} {new}\n\
                 reshard_operations_total{{class=\"read\",cluster=\"new\",outcome=\"refused\"}} 1\n\
                 reshard_clients 4\n"
            )
        };
        let (before, after) = (Served::parse(&text(10, 0)), Served::parse(&text(40, 10)));
        assert_eq!(after.since(&before, "read"), (30, 10));
        assert_eq!(after.since(&before, "write"), (0, 0));
        assert!((share((30, 10)) - 25.0).abs() < 1e-9);
    }
}
