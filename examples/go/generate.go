// Greedy decoding of an artifact, with the sparse kernels: token ids in, token ids out.
//
//	generate RUNTIME MODEL.onnx LIBRARY COUNT ID...
//
// RUNTIME is onnxruntime's library, LIBRARY lib/PLATFORM/FILE next to MODEL.onnx. Needs yalue/onnxruntime_go of May 2026
// or later.
package main

import (
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"

	ort "github.com/yalue/onnxruntime_go"
)

const past = "past_key_values."

func check[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// Returns a KV cache for batch 1 and no tokens yet: of floats, or of bytes after --kv-cache i8 or i8-token.
func empty(info ort.InputOutputInfo) ort.Value {
	shape := ort.NewShape(1, info.Dimensions[1], 0, info.Dimensions[3])
	if info.DataType == ort.TensorElementDataTypeInt8 {
		return check(ort.NewEmptyTensor[int8](shape))
	}
	return check(ort.NewEmptyTensor[float32](shape))
}

func row(length int, value func(i int) int64) ort.Value {
	values := make([]int64, length)
	for i := range values {
		values[i] = value(i)
	}
	return check(ort.NewTensor(ort.NewShape(1, int64(length)), values))
}

// Returns the token with the highest of the last position's logits.
func bestToken(logits *ort.Tensor[float32]) int64 {
	data, vocabulary, best := logits.GetData(), int(logits.GetShape()[2]), 0
	last := data[len(data)-vocabulary:]
	for token := range last {
		if last[token] > last[best] {
			best = token
		}
	}
	return int64(best)
}

func decode(session *ort.DynamicAdvancedSession, positions bool, caches []ort.Value, ids []int64, count int) {
	for length := 0; count > 0; count-- {
		tokens := ids
		inputs := append([]ort.Value{
			row(len(tokens), func(i int) int64 { return tokens[i] }),
			row(length+len(tokens), func(int) int64 { return 1 }),
		}, caches...)
		if positions {
			inputs = append(inputs, row(len(tokens), func(i int) int64 { return int64(length + i) }))
		}
		outputs := make([]ort.Value, 1+len(caches)) // nil: onnxruntime allocates them
		if err := session.Run(inputs, outputs); err != nil {
			log.Fatal(err)
		}
		for _, input := range inputs {
			input.Destroy()
		}
		length += len(tokens)
		caches = outputs[1:]
		ids = []int64{bestToken(outputs[0].(*ort.Tensor[float32]))}
		outputs[0].Destroy()
		fmt.Print(ids[0], map[bool]string{true: " ", false: "\n"}[count > 1])
	}
}

func main() {
	if len(os.Args) < 6 {
		fmt.Fprintln(os.Stderr, "usage: generate RUNTIME MODEL.onnx LIBRARY COUNT ID...")
		os.Exit(2)
	}
	ort.SetSharedLibraryPath(os.Args[1])
	if err := ort.InitializeEnvironment(); err != nil {
		log.Fatal(err)
	}
	options := check(ort.NewSessionOptions())
	if err := options.RegisterCustomOpsLibrary(os.Args[3]); err != nil {
		log.Fatal(err)
	}
	names, results := []string{"input_ids", "attention_mask"}, []string{"logits"}
	caches, positions := []ort.Value{}, false
	infos, _, err := ort.GetInputOutputInfo(os.Args[2]) // loads the model once more, without the library
	for _, info := range check(infos, err) {
		if info.Name == "position_ids" {
			positions = true
		} else if strings.HasPrefix(info.Name, past) {
			names = append(names, info.Name)
			results = append(results, "present."+strings.TrimPrefix(info.Name, past))
			caches = append(caches, empty(info))
		}
	}
	if positions {
		names = append(names, "position_ids")
	}
	session := check(ort.NewDynamicAdvancedSession(os.Args[2], names, results, options))
	ids := []int64{}
	for _, word := range os.Args[5:] {
		ids = append(ids, check(strconv.ParseInt(word, 10, 64)))
	}
	decode(session, positions, caches, ids, check(strconv.Atoi(os.Args[4])))
}
