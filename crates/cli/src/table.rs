//! Tables and records for people: what fits the terminal, and never a wrapped line.
//!
//! A table that does not fit gives up its less important columns; when even the important ones do not fit, each row
//! becomes a record of one line a field.

use console::{measure_text_width, pad_str, truncate_str};

use crate::text::printable;

/// Between two columns.
const GAP: &str = "  ";
/// Free text is cut to this width in a table on a terminal, and left out rather than cut to less than the second.
const TEXT_WIDTH_MAX: usize = 60;
const TEXT_WIDTH_MIN: usize = 12;

/// What happens to a column when the terminal is narrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It stays whole, or the table is shown as records.
    Whole,
    /// It is left out.
    Optional,
    /// Free text: it is cut, or left out.
    Cut,
}

/// A column: its heading and how it fits.
pub(crate) type Column = (&'static str, Fit);

/// Rows under headings.
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

/// Fields of one thing.
pub(crate) struct Record(Vec<(&'static str, String)>);

/// A table as text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// Lines, each with its end.
    pub(crate) text: String,
    /// Columns that did not fit.
    pub(crate) hidden: Vec<&'static str>,
}

impl Table {
    /// A table with one row an item.
    pub(crate) fn new<T>(columns: &[Column], items: &[T], cells: impl Fn(&T) -> Vec<String>) -> Self {
        let row = |item| cells(item).iter().map(|cell| printable(cell)).collect();
        Self { columns: columns.to_vec(), rows: items.iter().map(row).collect() }
    }

    /// The table as text, for a terminal of `width` columns or for a file.
    pub(crate) fn render(&self, width: Option<usize>) -> Rendered {
        let Some(width) = width else { return self.lines(&self.widths(usize::MAX)) };
        let mut left = width;
        let mut shown = Vec::new();
        for (natural, (_, fit)) in self.widths(TEXT_WIDTH_MAX).into_iter().zip(&self.columns) {
            // Nothing stands before the first column.
            let gap = if left == width { 0 } else { GAP.len() };
            let room = left.saturating_sub(gap);
            let taken = match fit {
                _ if natural <= room => natural,
                Fit::Whole => return Rendered { text: self.records(), hidden: Vec::new() },
                Fit::Cut if room >= TEXT_WIDTH_MIN => room,
                Fit::Optional | Fit::Cut => 0,
            };
            if taken > 0 {
                left = room - taken;
            }
            shown.push(taken);
        }
        self.lines(&shown)
    }

    /// The width of each column, where free text counts as at most `text_max`.
    fn widths(&self, text_max: usize) -> Vec<usize> {
        let width = |(index, (heading, fit)): (usize, &Column)| {
            let cells = self.rows.iter().filter_map(|row| row.get(index));
            let widest = cells.map(|cell| measure_text_width(cell)).max().unwrap_or(0);
            let widest = if *fit == Fit::Cut { widest.min(text_max) } else { widest };
            widest.max(measure_text_width(heading))
        };
        self.columns.iter().enumerate().map(width).collect()
    }

    /// Lines with each column as wide as told; columns of width 0 are left out.
    fn lines(&self, widths: &[usize]) -> Rendered {
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let cells = cells.zip(widths).filter(|(_, width)| **width > 0);
            let cells = cells.map(|(cell, width)| {
                pad_str(&truncate_str(cell, *width, "…"), *width, console::Alignment::Left, None).into_owned()
            });
            format!("{}\n", cells.collect::<Vec<_>>().join(GAP).trim_end())
        };
        let mut text = line(&mut self.columns.iter().map(|(heading, _)| *heading));
        for row in &self.rows {
            text.push_str(&line(&mut row.iter().map(String::as_str)));
        }
        let hidden = self.columns.iter().zip(widths).filter(|(_, width)| **width == 0);
        Rendered { text, hidden: hidden.map(|((heading, _), _)| *heading).collect() }
    }

    fn records(&self) -> String {
        let headings = self.columns.iter().map(|(heading, _)| *heading);
        let record = |row: &Vec<String>| Record(headings.clone().zip(row.iter().cloned()).collect()).render();
        self.rows.iter().map(record).collect::<Vec<_>>().join("\n")
    }
}

impl Record {
    /// A record of fields; those without a value are left out.
    pub(crate) fn new<const N: usize>(fields: [(&'static str, Option<String>); N]) -> Self {
        let fields = fields.into_iter().filter_map(|(name, value)| Some((name, printable(&value?))));
        Self(fields.collect())
    }

    /// One line a field.
    pub(crate) fn render(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        self.0
            .iter()
            .map(|(name, value)| format!("{name:width$}{GAP}{value}").trim_end().to_owned() + "\n")
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(width: Option<usize>, expected: &Expect) {
        let columns = [
            ("ID", Fit::Whole),
            ("STATUS", Fit::Whole),
            ("CREATED (UTC)", Fit::Optional),
            ("COMMENT", Fit::Cut),
        ];
        let rows = [
            [
                "b7a2f0de",
                "Succeeded",
                "2026-03-02 08:14:55",
                "IR-20771 contain while triaging\nthe second line",
            ],
            ["0d0c7b1e", "Pending", "2026-03-02 08:14:59", "機械を止める"],
        ];
        let table = Table::new(&columns, &rows, |row| row.map(str::to_owned).to_vec());
        let rendered = table.render(width);
        for line in rendered.text.lines() {
            assert!(width.is_none_or(|width| measure_text_width(line) <= width || width < 20), "{line}");
        }
        let hidden = if rendered.hidden.is_empty() {
            String::new()
        } else {
            format!("hidden: {:?}\n", rendered.hidden)
        };
        expected.assert_eq(&(rendered.text + &hidden));
    }

    #[test]
    fn a_file_gets_everything() {
        check(
            None,
            &expect![[r#"
            ID        STATUS     CREATED (UTC)        COMMENT
            b7a2f0de  Succeeded  2026-03-02 08:14:55  IR-20771 contain while triaging\nthe second line
            0d0c7b1e  Pending    2026-03-02 08:14:59  機械を止める
        "#]],
        );
    }

    #[test]
    fn a_wide_terminal_gets_everything() {
        check(
            Some(120),
            &expect![[r#"
            ID        STATUS     CREATED (UTC)        COMMENT
            b7a2f0de  Succeeded  2026-03-02 08:14:55  IR-20771 contain while triaging\nthe second line
            0d0c7b1e  Pending    2026-03-02 08:14:59  機械を止める
        "#]],
        );
    }

    #[test]
    fn free_text_is_cut_first() {
        check(
            Some(60),
            &expect![[r#"
            ID        STATUS     CREATED (UTC)        COMMENT
            b7a2f0de  Succeeded  2026-03-02 08:14:55  IR-20771 contain …
            0d0c7b1e  Pending    2026-03-02 08:14:59  機械を止める
        "#]],
        );
    }

    #[test]
    fn optional_columns_are_left_out_and_named() {
        check(
            Some(36),
            &expect![[r#"
            ID        STATUS     COMMENT
            b7a2f0de  Succeeded  IR-20771 conta…
            0d0c7b1e  Pending    機械を止める
            hidden: ["CREATED (UTC)"]
        "#]],
        );
    }

    #[test]
    fn a_table_that_cannot_fit_becomes_records() {
        check(
            Some(18),
            &expect![[r#"
            ID             b7a2f0de
            STATUS         Succeeded
            CREATED (UTC)  2026-03-02 08:14:55
            COMMENT        IR-20771 contain while triaging\nthe second line

            ID             0d0c7b1e
            STATUS         Pending
            CREATED (UTC)  2026-03-02 08:14:59
            COMMENT        機械を止める
        "#]],
        );
    }

    #[test]
    fn records_leave_out_what_has_no_value() {
        let record = Record::new([
            ("id", Some("7".to_owned())),
            ("failure", None),
            ("comment", Some("a\u{7}b".to_owned())),
        ]);
        expect![[r#"
            id       7
            comment  a\u{7}b
        "#]]
        .assert_eq(&record.render());
    }

    #[test]
    fn a_table_without_rows_is_its_headings() {
        let table = Table::new(&[("ID", Fit::Whole)], &[] as &[u8], |_| Vec::new());
        assert_eq!(table.render(Some(1)).text, "");
        assert_eq!(table.render(Some(80)).text, "ID\n");
    }
}
