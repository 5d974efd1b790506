//! A pipeline as a drawing: a node for the units of one stage that the same cells use.

use std::collections::{BTreeMap, BTreeSet};

use super::build::CellUnits;
use super::graph::Graph;

/// Nodes and arrows; per-image units of a stage are one node, epochs are nodes of their own.
#[derive(Debug)]
pub struct Drawing {
    nodes: Vec<Node>,
    /// From what is read to its reader.
    arrows: BTreeSet<(usize, usize)>,
    n_cells: usize,
}

#[derive(Debug)]
struct Node {
    title: String,
    units: usize,
    cells: Vec<String>,
}

impl Drawing {
    pub fn new(graph: &Graph, cells: &[CellUnits]) -> Self {
        let mut users: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); graph.len()];
        for (at, cell) in cells.iter().enumerate() {
            cell.units().for_each(|unit| {
                users[unit].insert(at);
            });
        }
        let mut nodes: Vec<Node> = Vec::new();
        let mut by_key = BTreeMap::new();
        let mut node_of = Vec::new();
        for (unit, users) in graph.units().zip(&users) {
            let is_own = unit.stage.ends_with("_epoch") || unit.stage == "evaluate";
            let title = if is_own { unit.label() } else { unit.stage.to_owned() };
            let at = *by_key.entry((title.clone(), users.clone(), unit.params.clone())).or_insert_with(|| {
                let cells = users.iter().map(|&cell| cells[cell].name.clone()).collect();
                nodes.push(Node { title, units: 0, cells });
                nodes.len() - 1
            });
            nodes[at].units += 1;
            node_of.push(at);
        }
        let mut arrows = BTreeSet::new();
        for (unit, &to) in node_of.iter().enumerate() {
            graph.for_each_dependency(unit, |from| {
                if node_of[from] != to {
                    arrows.insert((node_of[from], to));
                }
            });
        }
        Self { nodes, arrows, n_cells: cells.len() }
    }

    fn text(&self, node: &Node, line_break: &str, escaped: fn(&str) -> String) -> String {
        let units = if node.units > 1 { format!(" x {}", node.units) } else { String::new() };
        let cells = match node.cells.len() {
            n if n == self.n_cells && n > 1 => "all variants".to_owned(),
            _ => node.cells.join("; "),
        };
        format!("{}{units}{line_break}{}", escaped(&node.title), escaped(&cells))
    }

    /// For Graphviz.
    pub fn dot(&self) -> String {
        let mut text = String::from("digraph pipeline {\n  node [shape=box];\n");
        for (i, node) in self.nodes.iter().enumerate() {
            text.push_str(&format!(
                "  n{i} [label=\"{}\"];\n",
                self.text(node, "\\n", |text| text.replace('\\', "\\\\").replace('"', "\\\""))
            ));
        }
        self.arrows.iter().for_each(|(from, to)| text.push_str(&format!("  n{from} -> n{to};\n")));
        text + "}\n"
    }

    /// For Markdown.
    pub fn mermaid(&self) -> String {
        let mut text = String::from("flowchart TD\n");
        for (i, node) in self.nodes.iter().enumerate() {
            text.push_str(&format!("  n{i}[\"{}\"]\n", self.text(node, "<br>", of_html)));
        }
        self.arrows.iter().for_each(|(from, to)| text.push_str(&format!("  n{from} --> n{to}\n")));
        text
    }
}

/// A text in HTML, as Mermaid takes it.
fn of_html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
