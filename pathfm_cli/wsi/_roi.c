/* A rectangle of one baseline JPEG tile, without decoding the rest of the tile.
 *
 * libjpeg-turbo skips the inverse transform of the columns and rows outside the rectangle
 * (jpeg_crop_scanline, jpeg_skip_scanlines) and stops after its last row. The pixels are those of
 * a full decode: the rectangle is widened where upsampled chroma looks at neighbouring samples.
 *
 * The data is untrusted. Every libjpeg warning counts as an error, the declared size is compared
 * with the expected one before anything is allocated, and any kind of JPEG other than those listed
 * in `handled` is left to the caller.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include <jerror.h>

/* Older versions return other pixels from jpeg_skip_scanlines. */
#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "libjpeg-turbo 2.1 or newer is needed"
#endif

#define CHANNELS 3
/* Output columns beside the rectangle whose chroma the fancy upsampling looks at. */
#define MARGIN_PX 2

typedef struct {
    unsigned width, height; /* declared, unscaled */
    unsigned scale;
    unsigned x, y, columns, rows; /* the rectangle, scaled pixels */
    unsigned char *out;
    Py_ssize_t stride;
} Request;

typedef struct {
    struct jpeg_decompress_struct decoder;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    jmp_buf give_up;
    char message[JMSG_LENGTH_MAX];
    const JOCTET *next; /* the segment after the one that is read, or NULL */
    size_t next_bytes;
    JSAMPLE *row;
} Job;

typedef enum { DECODED, NOT_HANDLED, DAMAGED } Outcome;

static void on_error(j_common_ptr decoder)
{
    Job *job = decoder->client_data;
    job->errors.format_message(decoder, job->message);
    longjmp(job->give_up, 1);
}

static void on_message(j_common_ptr decoder, int level)
{
    if (level < 0)
        on_error(decoder);
}

static void on_source(j_decompress_ptr decoder)
{
    (void)decoder;
}

static boolean next_segment(j_decompress_ptr decoder)
{
    Job *job = decoder->client_data;
    if (job->next_bytes == 0)
        ERREXIT(decoder, JERR_INPUT_EOF);
    job->source.next_input_byte = job->next;
    job->source.bytes_in_buffer = job->next_bytes;
    job->next_bytes = 0;
    return TRUE;
}

static void skip_bytes(j_decompress_ptr decoder, long count)
{
    struct jpeg_source_mgr *source = decoder->src;
    size_t left = count > 0 ? (size_t)count : 0;
    while (left > source->bytes_in_buffer) {
        left -= source->bytes_in_buffer;
        next_segment(decoder);
    }
    source->next_input_byte += left;
    source->bytes_in_buffer -= left;
}

static void set_source(Job *job, const Py_buffer *prefix, const Py_buffer *data)
{
    struct jpeg_source_mgr *source = &job->source;
    source->init_source = on_source;
    source->fill_input_buffer = next_segment;
    source->skip_input_data = skip_bytes;
    source->resync_to_restart = jpeg_resync_to_restart;
    source->term_source = on_source;
    source->next_input_byte = prefix->buf;
    source->bytes_in_buffer = (size_t)prefix->len;
    job->next = data->buf;
    job->next_bytes = (size_t)data->len;
}

/* One sequential Huffman scan of three components, 4:4:4, 4:2:2, 4:4:0 or 4:2:0. */
static int handled(const struct jpeg_decompress_struct *decoder)
{
    const jpeg_component_info *parts = decoder->comp_info;
    /* The first scan of a progressive or lossless image ends at another coefficient. */
    return decoder->Se == DCTSIZE2 - 1 && !decoder->arith_code && decoder->data_precision == 8 &&
           decoder->num_components == CHANNELS && decoder->comps_in_scan == CHANNELS &&
           parts[0].h_samp_factor <= 2 && parts[0].v_samp_factor <= 2 &&
           parts[1].h_samp_factor == 1 && parts[1].v_samp_factor == 1 &&
           parts[2].h_samp_factor == 1 && parts[2].v_samp_factor == 1;
}

/* Returns the first column that will be decoded; decoder->output_width becomes their number. */
static JDIMENSION crop(j_decompress_ptr decoder, const Request *request)
{
    JDIMENSION margin = decoder->max_h_samp_factor > 1 ? MARGIN_PX : 0;
    JDIMENSION left = request->x > margin ? request->x - margin : 0;
    JDIMENSION right = request->x + request->columns + margin;
    if (right > decoder->output_width)
        right = decoder->output_width;
    JDIMENSION columns = right - left;
    if (columns < decoder->output_width)
        jpeg_crop_scanline(decoder, &left, &columns);
    return left;
}

static void read_rows(Job *job, const Request *request, size_t skipped_bytes)
{
    unsigned char *out = request->out;
    for (unsigned i = 0; i < request->rows; i++) {
        jpeg_read_scanlines(&job->decoder, &job->row, 1);
        memcpy(out, job->row + skipped_bytes, (size_t)request->columns * CHANNELS);
        out += request->stride;
    }
}

static Outcome decode_rectangle(Job *job, const Request *request)
{
    j_decompress_ptr decoder = &job->decoder;
    jpeg_read_header(decoder, TRUE);
    if (decoder->image_width != request->width || decoder->image_height != request->height) {
        snprintf(job->message, sizeof job->message, "a tile of %ux%u, not %ux%u",
                 decoder->image_width, decoder->image_height, request->width, request->height);
        return DAMAGED;
    }
    if (!handled(decoder))
        return NOT_HANDLED;
    decoder->out_color_space = JCS_RGB;
    decoder->dct_method = JDCT_ISLOW;
    decoder->scale_num = 1;
    decoder->scale_denom = request->scale;
    jpeg_start_decompress(decoder);
    JDIMENSION left = crop(decoder, request);
    job->row = malloc((size_t)decoder->output_width * CHANNELS);
    if (job->row == NULL)
        ERREXIT1(decoder, JERR_OUT_OF_MEMORY, 0);
    if (request->y > 0)
        jpeg_skip_scanlines(decoder, request->y);
    read_rows(job, request, (size_t)(request->x - left) * CHANNELS);
    /* At the end of the tile a full decode also looks at what follows the last row. */
    if (decoder->output_scanline == decoder->output_height)
        jpeg_finish_decompress(decoder);
    return DECODED;
}

static Outcome run(Job *job, const Request *request, const Py_buffer *prefix,
                   const Py_buffer *data)
{
    Outcome outcome;
    memset(job, 0, sizeof *job);
    job->decoder.err = jpeg_std_error(&job->errors);
    job->errors.error_exit = on_error;
    job->errors.emit_message = on_message;
    job->decoder.client_data = job;
    if (setjmp(job->give_up) == 0) {
        jpeg_create_decompress(&job->decoder);
        set_source(job, prefix, data);
        job->decoder.src = &job->source;
        outcome = decode_rectangle(job, request);
    } else {
        outcome = DAMAGED;
    }
    jpeg_destroy_decompress(&job->decoder);
    free(job->row);
    return outcome;
}

static int fits(const Request *request)
{
    unsigned scale = request->scale;
    unsigned columns, rows;
    if (request->width < 1 || request->width > JPEG_MAX_DIMENSION || request->height < 1 ||
        request->height > JPEG_MAX_DIMENSION ||
        (scale != 1 && scale != 2 && scale != 4 && scale != 8))
        return 0;
    columns = (request->width + scale - 1) / scale;
    rows = (request->height + scale - 1) / scale;
    return request->columns >= 1 && request->columns <= columns && request->rows >= 1 &&
           request->rows <= rows && request->x <= columns - request->columns &&
           request->y <= rows - request->rows;
}

/* Takes the rectangle's size and place in memory from a (rows, columns, 3) uint8 array. */
static int set_out(Request *request, const Py_buffer *view)
{
    if (view->ndim != 3 || view->itemsize != 1 || view->shape[2] != CHANNELS ||
        view->strides[2] != 1 || view->strides[1] != CHANNELS ||
        view->shape[0] > JPEG_MAX_DIMENSION || view->shape[1] > JPEG_MAX_DIMENSION)
        return 0;
    request->rows = (unsigned)view->shape[0];
    request->columns = (unsigned)view->shape[1];
    request->out = view->buf;
    request->stride = view->strides[0];
    return 1;
}

static PyObject *result_of(Outcome outcome, const Job *job)
{
    if (outcome == DAMAGED) {
        PyErr_SetString(PyExc_ValueError, job->message);
        return NULL;
    }
    return PyBool_FromLong(outcome == DECODED);
}

PyDoc_STRVAR(decode_doc,
             "decode(prefix, data, width, height, x, y, out, scale)\n--\n\n"
             "Decode a rectangle of the JPEG stream `prefix` + `data` into `out`, (h, w, 3) uint8.\n\n"
             "Markers in `prefix` say whether the samples are YCbCr or RGB.\n"
             "Returns False, with `out` untouched, for a kind of JPEG that is not handled.\n"
             "Raises ValueError for damaged data, another size than width x height, and\n"
             "arguments that do not fit each other. Releases the GIL.");

static PyObject *decode(PyObject *self, PyObject *args)
{
    Py_buffer prefix, data, view;
    PyObject *out, *result = NULL;
    Request request = {0};
    Job job;
    Outcome outcome;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*IIIIOI:decode", &prefix, &data, &request.width,
                          &request.height, &request.x, &request.y, &out, &request.scale))
        return NULL;
    if (PyObject_GetBuffer(out, &view, PyBUF_STRIDED) == 0) {
        if (set_out(&request, &view) && fits(&request)) {
            Py_BEGIN_ALLOW_THREADS
            outcome = run(&job, &request, &prefix, &data);
            Py_END_ALLOW_THREADS
            result = result_of(outcome, &job);
        } else {
            PyErr_SetString(PyExc_ValueError, "the rectangle does not fit the tile or the array");
        }
        PyBuffer_Release(&view);
    }
    PyBuffer_Release(&prefix);
    PyBuffer_Release(&data);
    return result;
}

static PyMethodDef methods[] = {{"decode", decode, METH_VARARGS, decode_doc}, {NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_roi", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__roi(void)
{
    return PyModuleDef_Init(&module);
}
