package main

import "strings"

// object is a JSON object. Its keys come out sorted, so that the file changes
// only where the dashboard does.
type object = map[string]any

// The grid that Grafana lays panels out on.
const (
	gridWidth   = 24
	chartHeight = 8
	statHeight  = 4
)

// selector is $S: the hosts that the variables choose.
const selector = `job=~"$job",instance=~"$instance"`

var placeholders = strings.NewReplacer("$S", selector, "$R", "$__rate_interval")

var source = object{"type": "prometheus", "uid": "${datasource}"}

func dashboard(rows []row) object {
	l := layout{id: 1}
	for _, r := range rows {
		l.addRow(r)
	}
	return object{
		"title":         "finwait",
		"uid":           "finwait",
		"description":   "TCP sockets by state, their transitions and endings, and what finwait says of itself.",
		"tags":          []string{"finwait", "tcp"},
		"schemaVersion": 38,
		"editable":      true,
		"graphTooltip":  1,
		"refresh":       "30s",
		"time":          object{"from": "now-1h", "to": "now"},
		"timezone":      "browser",
		"templating":    object{"list": variables()},
		"panels":        l.panels,
	}
}

func variables() []object {
	choose := func(name, label, query string) object {
		return object{
			"name": name, "label": label, "type": "query", "datasource": source, "refresh": 2, "sort": 1,
			"query":      object{"query": query, "refId": name},
			"includeAll": true, "allValue": ".*", "multi": true,
			"current": object{"text": []string{"All"}, "value": []string{"$__all"}},
		}
	}
	return []object{
		{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
		choose("job", "Job", `label_values(finwait_build_info, job)`),
		choose("instance", "Host", `label_values(finwait_build_info{job=~"$job"}, instance)`),
	}
}

// layout places panels from left to right, and in lines.
type layout struct {
	panels  []object
	id      int
	x, y, h int
}

func (l *layout) addRow(r row) {
	l.newLine()
	l.place(object{"type": "row", "title": r.title, "collapsed": false, "panels": []object{}}, gridWidth, 1)
	for _, p := range r.panels {
		width, height := gridWidth/3, chartHeight
		switch {
		case p.stat:
			width, height = gridWidth/len(r.panels), statHeight
		case p.wide:
			width = gridWidth
		}
		l.place(p.object(), width, height)
	}
}

// place puts a panel next to the last one, or below where it does not fit.
func (l *layout) place(p object, width, height int) {
	if l.x+width > gridWidth {
		l.newLine()
	}
	p["id"] = l.id
	p["gridPos"] = object{"x": l.x, "y": l.y, "w": width, "h": height}
	l.panels = append(l.panels, p)
	l.id++
	l.x += width
	l.h = max(l.h, height)
}

func (l *layout) newLine() { l.x, l.y, l.h = 0, l.y+l.h, 0 }

func (p *panel) object() object {
	o := object{
		"title": p.title, "description": p.about, "datasource": source, "targets": p.targets(),
		"fieldConfig": object{"defaults": p.defaults(), "overrides": []object{}},
	}
	if p.stat {
		o["type"] = "stat"
		o["options"] = object{"reduceOptions": object{"calcs": []string{"lastNotNull"}}, "colorMode": "none", "graphMode": "area"}
		return o
	}
	o["type"] = "timeseries"
	o["options"] = object{
		"legend":  object{"displayMode": "table", "placement": "right", "showLegend": true, "calcs": []string{"lastNotNull", "max"}},
		"tooltip": object{"mode": "multi", "sort": "desc"},
	}
	return o
}

func (p *panel) defaults() object {
	d := object{"unit": p.unit}
	if p.stat {
		return d
	}
	custom := object{"lineWidth": 1, "fillOpacity": 0, "showPoints": "never", "spanNulls": false}
	if p.stack {
		custom["fillOpacity"] = 60
		custom["stacking"] = object{"mode": "normal", "group": "A"}
	}
	d["custom"] = custom
	return d
}

func (p *panel) targets() []object {
	var all []object
	for i, q := range p.queries {
		all = append(all, object{
			"refId": string(rune('A' + i)), "datasource": source, "instant": p.stat, "range": !p.stat,
			"expr": placeholders.Replace(q.expr), "legendFormat": q.legend,
		})
	}
	return all
}
